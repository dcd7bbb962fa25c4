"""What is done to one operand of a GEMM, and a recipe: one treatment for each operand role."""

import re
from dataclasses import dataclass, fields

from metis_compile.numerics.formats import FORMATS, QuantSpec
from metis_compile.policy.errors import PolicyError, show, unknown_name

OPERANDS = ("weight", "activation", "gradient")
HIGH = "high"
_QUANTIZED_KEYS = ("block", "rounding", "guard", "scale_mode")


@dataclass(frozen=True, kw_only=True)
class Treatment:
    """How one operand is prepared for one GEMM. Raises PolicyError for a combination that does not exist.

    After construction every choice that the format leaves open holds its default, so that two treatments that
    do the same are equal: ``Treatment(format="nvfp4") == Treatment(format="nvfp4", block="1x16")``.
    """

    format: str  # "high" (left as it is) or the name of a format
    block: str | None = None  # elements that share a scale, such as "1x16"; None: the format's first choice
    rounding: str | None = None  # "nearest" or "stochastic"; None: nearest
    guard: str | None = None  # against clipping under stochastic rounding; None: the rounding's own default
    scale_mode: str | None = None  # rounding of a power-of-two scale; None: the format's default

    def __post_init__(self) -> None:
        choices = (HIGH, *FORMATS)
        if not isinstance(self.format, str) or self.format not in choices:
            raise unknown_name("format", self.format, choices, key="format")
        for key in _QUANTIZED_KEYS:
            value = getattr(self, key)
            if value is not None and not isinstance(value, str):
                raise PolicyError(f"{key} must be a text, got {show(value)}", key=key, value=value)
            if value is not None and self.format == HIGH:
                problem = (
                    f'{key} = {show(value)} has no meaning with format "high", which leaves the operand alone'
                )
                raise PolicyError(problem, key=key, value=value)
        spec = self.spec
        if spec is not None:
            for key in _QUANTIZED_KEYS:
                object.__setattr__(self, key, getattr(spec, key))

    @property
    def spec(self) -> QuantSpec | None:
        """The quantizer's full specification; None for "high"."""
        if self.format == HIGH:
            return None
        given: dict[str, str] = {}
        for key in _QUANTIZED_KEYS:
            value = getattr(self, key)
            if value is not None:
                given[key] = value
                try:
                    QuantSpec.make(self.format, **given)
                except ValueError as error:
                    raise PolicyError(str(error), key=key, value=value) from None
        return QuantSpec.make(self.format, **given)

    def __str__(self) -> str:
        return HIGH if self.spec is None else str(self.spec)


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
        if self.name == HIGH and any(self.treatment(operand).format != HIGH for operand in OPERANDS):
            problem = 'the recipe "high" is built in and cannot be redefined; choose another name'
            raise PolicyError(problem, value=self.name)

    def treatment(self, operand: str) -> Treatment:
        """The treatment for "weight", "activation" or "gradient"; ValueError for anything else."""
        if operand not in OPERANDS:
            raise ValueError(f"operand must be one of {OPERANDS}, got {operand!r}")
        return getattr(self, operand)


HIGH_RECIPE = Recipe(name=HIGH, **dict.fromkeys(OPERANDS, Treatment(format=HIGH)))
