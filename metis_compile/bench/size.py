"""The model that is measured: the GPT of ``metis train``, by width, depth and tokens in a step."""

from metis_compile.bench.errors import BenchError
from metis_compile.train.settings import Settings

__all__ = ["settings_of", "size_text", "tokens_of"]

HEAD = 64  # features of an attention head, where they divide the width
CONTEXT = 256  # tokens in a sequence, or all of them where there are fewer


def settings_of(*, width: int, layers: int, tokens: int, device: str, dtype: str) -> Settings:
    """The settings of a model; heads and sequences follow. Raises BenchError or TrainError for a size that is none."""
    context = min(CONTEXT, tokens)
    if tokens < 1 or tokens % context:
        raise BenchError(f"tokens must be a multiple of {CONTEXT}, or fewer than that and at least 1, got {tokens}")
    return Settings(
        policy="high",
        width=width,
        layers=layers,
        heads=width // HEAD if width > 0 and width % HEAD == 0 else 1,
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
    return f"width {widths}, {depth}, {tokens_of(settings)} tokens, {settings.dtype}"
