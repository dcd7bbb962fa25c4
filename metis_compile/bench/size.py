"""The model that is measured, by width, depth and tokens in a step: the GPT of ``metis train``, or Llama's blocks."""

from dataclasses import dataclass

from metis_compile.bench.errors import BenchError
from metis_compile.train.settings import Settings

__all__ = ["MODELS", "Model", "model_of", "settings_of", "size_text", "tokens_of"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a model has where nothing is asked for, and what follows from its sizes."""

    width: int
    layers: int
    tokens: int
    head: int  # features of an attention head, where they divide the width
    context: int  # tokens in a sequence, or all of them where there are fewer


MODELS = {
    "gpt": Model(width=512, layers=4, tokens=2048, head=64, context=256),
    "llama-8b-block": Model(width=4096, layers=1, tokens=8192, head=128, context=2048),
}


def model_of(name: str) -> Model:
    """Raises BenchError for a name that is none."""
    if name not in MODELS:
        raise BenchError(f"model must be {' or '.join(MODELS)}, got {name!r}")
    return MODELS[name]


def settings_of(*, width: int, layers: int, tokens: int, device: str, dtype: str, model: str = "gpt") -> Settings:
    """The settings of a model; heads and sequences follow. Raises BenchError or TrainError for a size that is none."""
    found = model_of(model)
    context = min(found.context, tokens)
    if tokens < 1 or tokens % context:
        raise BenchError(
            f"tokens must be a multiple of {found.context}, or fewer than that and at least 1, got {tokens}"
        )
    return Settings(
        policy="high",
        model=model,
        width=width,
        layers=layers,
        heads=width // found.head if width > 0 and width % found.head == 0 else 1,
        context=context,
        batch=tokens // context,
        device=device,
        dtype=dtype,
    )


def tokens_of(settings: Settings) -> int:
    """Tokens in a step."""
    return settings.batch * settings.context


def size_text(settings: Settings, *others: Settings) -> str:
    """For titles. others: of other widths, and else the same."""
    widths = " and ".join(str(s.width) for s in (settings, *others))
    depth = f"{settings.layers} layer{'s' if settings.layers > 1 else ''}"
    model = "" if settings.model == "gpt" else f"{settings.model}, "
    return f"{model}width {widths}, {depth}, {tokens_of(settings)} tokens, {settings.dtype}"
