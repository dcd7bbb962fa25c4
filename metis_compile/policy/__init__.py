"""Policy files: which operand of which GEMM gets which treatment, read from TOML."""

from metis_compile.policy.errors import PolicyError
from metis_compile.policy.kinds import KINDS
from metis_compile.policy.policy import Policy
from metis_compile.policy.presets import presets
from metis_compile.policy.rule import DTYPES, GEMMS, OPS, Decision, Query, Rule
from metis_compile.policy.schedule import Schedule, Stage
from metis_compile.policy.treatment import OPERANDS, Recipe, Treatment

__all__ = [
    "DTYPES",
    "GEMMS",
    "KINDS",
    "OPERANDS",
    "OPS",
    "Decision",
    "Policy",
    "PolicyError",
    "Query",
    "Recipe",
    "Rule",
    "Schedule",
    "Stage",
    "Treatment",
    "presets",
]
