"""What was trained, for the heading of a comparison's tables."""

from metis_compile.train.settings import Settings

__all__ = ["title_of"]


def title_of(settings: Settings, branch: int, last: int) -> str:
    """The model, its size and its steps, what is not by default, and how many steps the training loss averages."""
    s = settings
    common = f", the first {branch} of them in full precision" if branch else ""
    return (
        f"{s.model}, width {s.width}, {s.layers} layers, {s.steps} steps of {s.batch * s.context} tokens, "
        f"{s.dtype}{common}{optimizer(s)}; train gap: mean of the last {last} steps"
    )


def optimizer(settings: Settings) -> str:
    """What is not by default of the optimizer and of the weights that are validated."""
    s, default = settings, Settings()
    texts = {
        "learning_rate": f"learning rate {s.learning_rate:g}",
        "warmup": f"warm-up of {s.warmup} steps",
        "final_rate": f"falling to {s.final_rate:g} of the rate",
        "clip": f"gradients clipped to {s.clip:g}",
        "average_weights": f"validated with the mean weights of the last {100 * s.average_weights:g} % of the steps",
        "ema": f"validated with a moving average of the weights, decay {s.ema:g}",
    }
    return "".join(f", {text}" for name, text in texts.items() if getattr(s, name) != getattr(default, name))
