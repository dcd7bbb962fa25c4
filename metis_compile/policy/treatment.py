"""What is done to one operand of a GEMM, and a recipe: one treatment for each operand role."""

import re
from dataclasses import dataclass, fields
from typing import Any

from metis_compile.conditioning.hadamard import SIGNS, SIZE, SIZES
from metis_compile.conditioning.registry import describe
from metis_compile.numerics.estimator import ESTIMATORS
from metis_compile.numerics.formats import FORMATS, ROUNDINGS, QuantSpec
from metis_compile.numerics.held_amax import LONGEST
from metis_compile.policy.errors import PolicyError, show, unknown_name
from metis_compile.policy.splits import read_split

OPERANDS = ("weight", "activation", "gradient")
HIGH = "high"
_SPEC_FIELDS = {  # keys that are fields of the QuantSpec, under its names for them
    "block": "block",
    "rounding": "rounding",
    "guard": "guard",
    "scale_mode": "scale_mode",
    "four_over_six": "select",
}


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How one operand is prepared for one GEMM. Raises PolicyError for a combination that does not exist.

    After construction every choice that the format leaves open holds its default, so that two treatments that
    do the same are equal: ``Treatment(format="nvfp4") == Treatment(format="nvfp4", block="1x16")``.
    """

    format: str  # "high" (left as it is) or the name of a format
    block: str | None = None  # elements that share a scale, such as "1x16"; None: the format's first choice
    rounding: str | None = None  # "nearest", "stochastic" or "eden"; None: nearest
    guard: str | None = None  # against clipping under stochastic rounding; None: the rounding's own default
    scale_mode: str | None = None  # how a scale becomes a power of two; None: the format's default, for fp8 it doesn't
    four_over_six: str | bool | None = None  # how blocks choose their scale, "mse", "mae", "expected"; None: they don't
    split: Any = None  # a conditioning, or what read_split makes one from; None: nothing is split off
    hadamard: str | bool | None = None  # "fixed" or "fresh" signs, along the contraction axis; None: no transform
    hadamard_size: int | None = None  # elements that such a transform mixes; None: 16
    estimator: str | None = None  # of a weight in fprop: what its gradient is multiplied by, "dge"; None: nothing
    hold_amax: int | None = None  # steps that an amax of the whole tensor serves; None: one, as 1 is

    def __post_init__(self) -> None:
        names = (HIGH, *FORMATS)
        if not isinstance(self.format, str) or self.format not in names:
            raise unknown_name(self.format, names, key="format")
        default_select = "expected" if self.rounding == "stochastic" else "mse"
        self._settle_flag("four_over_six", default_select)
        self._settle_flag("hadamard", SIGNS[0])
        if type(self.hold_amax) is int and self.hold_amax == 1:
            object.__setattr__(self, "hold_amax", None)
        for key in TREATMENT_KEYS[1:]:
            self._check(key)
        if self.hadamard is not None and self.hadamard_size is None:
            object.__setattr__(self, "hadamard_size", SIZE)
        if self.split is not None:
            object.__setattr__(self, "split", read_split(self.split))
        spec = self.spec
        if spec is not None:
            for key, field in _SPEC_FIELDS.items():
                object.__setattr__(self, key, getattr(spec, field))
            self._check_hold(spec)

    def _settle_flag(self, key: str, when_true: str) -> None:
        """Replaces true by the choice that it stands for, false by None."""
        value = getattr(self, key)
        if isinstance(value, bool):
            object.__setattr__(self, key, when_true if value else None)

    def _check_hold(self, spec: QuantSpec) -> None:
        value, key = self.hold_amax, "hold_amax"
        if value is None:
            return
        if type(value) is not int or not 1 <= value <= LONGEST:
            problem = f"must be a number of steps from 1 to {LONGEST:,}, got {show(value)}"
            raise PolicyError(problem, key=key, value=value)
        if not spec.holds_amax:
            problem = f"{show(value)} means nothing for {spec.format} {spec.block}, {spec.why_not_held}; leave it out"
            raise PolicyError(problem, key=key, value=value, allowed=())
        if self.estimator is not None:
            problem = f"{show(value)} does not go with an estimator, which is of scales that the weight itself has"
            raise PolicyError(f"{problem}; leave out one of them", key=key, value=value, allowed=())

    def _check(self, key: str) -> None:
        value = getattr(self, key)
        if value is None:
            return
        if self.format == HIGH:
            problem = f'{show(value)} means nothing with format "high", which leaves the operand alone'
            raise PolicyError(problem, key=key, value=value, allowed=())
        if key in ("split", "hold_amax"):
            return
        format = FORMATS[self.format]
        values: dict[str, tuple[Any, ...]] = {
            "block": format.blocks,
            "rounding": format.roundings,
            "guard": format.guards if self.rounding == "stochastic" else ("none",),
            "scale_mode": format.scale_modes or format.optional_scale_modes(self.block),
            "four_over_six": format.selects(self.rounding or ROUNDINGS[0]),
            "hadamard": SIGNS,
            "hadamard_size": SIZES if self.hadamard is not None else (),
            "estimator": ESTIMATORS if format.element_type.dtype is None else (),
        }
        allowed = values[key]
        if key == "estimator" and (self.rounding == "eden" or self.hadamard is not None or self.split is not None):
            problem = f"{show(value)} is for a weight that is rounded as it is: leave out eden, hadamard and split"
            raise PolicyError(problem, key=key, value=value, allowed=())
        if value in allowed and not isinstance(value, bool):
            return
        if key == "hadamard_size" and not allowed:
            problem = f"{show(value)} means nothing without a transform: give hadamard too, or leave it out"
            raise PolicyError(problem, key=key, value=value, allowed=())
        if key == "estimator" and not allowed:
            problem = f"{show(value)} means nothing for {self.format}: it is for elements of 4 bits; leave it out"
            raise PolicyError(problem, key=key, value=value, allowed=())
        if key == "guard" and value in format.guards:
            problem = f'{show(value)} is for rounding = "stochastic" only; leave it out'
            raise PolicyError(problem, key=key, value=value, allowed=allowed)
        if key == "scale_mode" and value in format.optional_scale_modes("row"):
            problem = f"{show(value)} is for {self.format} by row or block, not for the one scale of a tensor"
            blocks = ", ".join(show(block) for block in format.blocks if format.optional_scale_modes(block))
            raise PolicyError(f"{problem}: give block, one of {blocks}", key=key, value=value, allowed=())
        if key == "four_over_six" and self.rounding == "eden":
            problem = f'{show(value)} means nothing with rounding = "eden", which has no choice of 6 or 4; leave it out'
            raise PolicyError(problem, key=key, value=value, allowed=())
        if key == "four_over_six" and not allowed:
            problem = f"{show(value)} means nothing for {self.format}: nvfp4 alone can scale a block to 6 or to 4"
            raise PolicyError(f"{problem}; leave it out", key=key, value=value, allowed=())
        if not allowed:
            problem = f"{show(value)} means nothing for {self.format}, whose scale is {format.scale}"
            raise PolicyError(f"{problem}; leave it out", key=key, value=value, allowed=())
        raise unknown_name(value, allowed, key=key, of=self.format)

    @property
    def spec(self) -> QuantSpec | None:
        """The quantizer's full specification; None for "high"."""
        if self.format == HIGH:
            return None
        given = {field: getattr(self, key) for key, field in _SPEC_FIELDS.items()}
        try:
            return QuantSpec.make(self.format, **{key: text for key, text in given.items() if text is not None})
        except ValueError as error:  # a combination that the single keys do not show to be wrong
            raise PolicyError(str(error), value=given) from None

    def __str__(self) -> str:
        words = [HIGH if self.spec is None else str(self.spec)]
        if self.split is not None:
            words.append(f"split {describe(self.split)}")
        if self.hadamard is not None:
            words.append(f"hadamard {self.hadamard}" + (f" {self.hadamard_size}" if self.hadamard_size != SIZE else ""))
        if self.estimator is not None:
            words.append(f"estimator {self.estimator}")
        if self.hold_amax is not None:
            words.append(f"amax held for {self.hold_amax} steps")
        return ", ".join(words)


TREATMENT_KEYS = tuple(field.name for field in fields(Treatment))


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named treatment for each operand role: the weight, the activation, and the gradient of the output."""

    name: str  # letters, digits, - and _; "high" is built in
    weight: Treatment
    activation: Treatment
    gradient: Treatment

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            problem = f"a recipe's name holds letters, digits, - and _ only, got {show(self.name)}"
            raise PolicyError(problem, value=self.name)
        if self.name == HIGH and any(treatment.format != HIGH for treatment in self.treatments):
            problem = 'the recipe "high" is built in and cannot be redefined; choose another name'
            raise PolicyError(problem, value=self.name)
        for operand in OPERANDS[1:]:
            if (estimator := self.treatment(operand).estimator) is not None:
                problem = f"{operand} has the estimator {show(estimator)}, which is for weights; leave it out"
                raise PolicyError(problem, value=estimator, allowed=())

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        """In the order of OPERANDS."""
        return tuple(self.treatment(operand) for operand in OPERANDS)

    def treatment(self, operand: str) -> Treatment:
        """The treatment for "weight", "activation" or "gradient"; ValueError for anything else."""
        if operand not in OPERANDS:
            raise ValueError(f"operand must be one of {OPERANDS}, got {operand!r}")
        return getattr(self, operand)


HIGH_RECIPE = Recipe(name=HIGH, **dict.fromkeys(OPERANDS, Treatment(format=HIGH)))
