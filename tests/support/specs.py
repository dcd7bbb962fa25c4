"""The specs that tests go through, made from the table of formats: a new format is in all of them."""

from __future__ import annotations

from metis_compile.numerics import FORMATS, QuantSpec
from metis_compile.numerics.swizzle import can_swizzle

# Every spec that there is.
ALL = [
    QuantSpec.make(f.name, block, rounding, guard, mode, select)
    for f in FORMATS.values()
    for block in f.blocks
    for rounding in f.roundings
    for guard in (f.guards if rounding == "stochastic" else (None,))
    for mode in f.scale_modes or (None, *f.optional_scale_modes(block))
    for select in (None, *f.selects(rounding))
]


def covering(specs: list[QuantSpec], *fields: str) -> list[str]:
    """Of each format as few as have all that `fields` take on. A field may be several: "block+select"."""

    def cases(spec: QuantSpec) -> set[tuple[str, ...]]:
        return {(field, *(str(getattr(spec, name)) for name in field.split("+"))) for field in fields}

    found: list[str] = []
    for format in FORMATS:
        left = [spec for spec in specs if spec.format == format]
        missing = {case for spec in left for case in cases(spec)}
        while missing:
            best = max(left, key=lambda spec: len(cases(spec) & missing))
            missing -= cases(best)
            found.append(str(best))
    return found


# Every block, rounding, guard, mode and selection; and sums over blocks of both shapes, for all that needs them.
_FIELDS = ("block", "guard", "scale_mode", "rounding+select", "block+select")
_SEEN = [spec for spec in ALL if spec.guard != "round_up" or spec.scale_mode in (None, "floor")]  # it hides the mode
SPECS = covering(_SEEN, *_FIELDS)
# What the Triton kernel quantizes to, and of these those whose scales it can write swizzled.
TILED = covering([spec for spec in _SEEN if spec.block_shape is not None], *_FIELDS)
SWIZZLED = covering([spec for spec in ALL if can_swizzle(spec)], "rounding")
# Of these what shows little beside the others: E5M2 under the scales' other modes, where only the element differs.
REPEATED = {str(s) for s in ALL if s.format.endswith("_e5m2") and s.scale_mode not in (None, "floor")}
NEAREST = [str(QuantSpec.make(f.name, block)) for f in FORMATS.values() for block in f.blocks]
