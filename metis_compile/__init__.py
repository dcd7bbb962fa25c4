"""metis: ``torch.compile(model, backend="metis")`` trains unmodified PyTorch models in FP4 and FP8."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metis_compile.conditioning import Conditioned, split
    from metis_compile.inspection.explain import Explanation, explain
    from metis_compile.mlir import Exported, ExportError, export_mlir
    from metis_compile.monitoring.monitor import Monitor, monitor
    from metis_compile.naming import PolicyWarning, name_modules
    from metis_compile.numerics import QuantizedTensor, quantize
    from metis_compile.passes.record import Captured, CapturedGraph, SavedTensor, capture
    from metis_compile.policy import Policy, PolicyError, Schedule, presets
    from metis_compile.ranks import data_parallel_rank, set_data_parallel_rank
    from metis_compile.reporting.summary import Summary, summary
    from metis_compile.schedule import advance
    from metis_compile.sensitivity import Blame, BlameError, blame
    from metis_compile.state import KeptState, load_state_dict, state_dict
    from metis_compile.weights.regularizer import dual_range_regularizer
    from metis_compile.weights.reparametrization import plain_state_dict, reparametrize, unreparametrize

__version__ = "0.1.0"

_HOMES = {
    "Blame": "sensitivity",
    "BlameError": "sensitivity",
    "Captured": "passes.record",
    "CapturedGraph": "passes.record",
    "Conditioned": "conditioning",
    "Explanation": "inspection.explain",
    "ExportError": "mlir",
    "Exported": "mlir",
    "Monitor": "monitoring.monitor",
    "KeptState": "state",
    "Policy": "policy",
    "PolicyError": "policy",
    "PolicyWarning": "naming",
    "QuantizedTensor": "numerics",
    "SavedTensor": "passes.record",
    "Schedule": "policy",
    "Summary": "reporting.summary",
    "advance": "schedule",
    "blame": "sensitivity",
    "capture": "passes.record",
    "data_parallel_rank": "ranks",
    "dual_range_regularizer": "weights.regularizer",
    "explain": "inspection.explain",
    "export_mlir": "mlir",
    "load_state_dict": "state",
    "monitor": "monitoring.monitor",
    "name_modules": "naming",
    "plain_state_dict": "weights.reparametrization",
    "presets": "policy",
    "quantize": "numerics",
    "reparametrize": "weights.reparametrization",
    "set_data_parallel_rank": "ranks",
    "split": "conditioning",
    "state_dict": "state",
    "summary": "reporting.summary",
    "unreparametrize": "weights.reparametrization",
}
__all__ = [
    "Blame",
    "BlameError",
    "Captured",
    "CapturedGraph",
    "Conditioned",
    "Explanation",
    "ExportError",
    "Exported",
    "KeptState",
    "Monitor",
    "Policy",
    "PolicyError",
    "PolicyWarning",
    "QuantizedTensor",
    "SavedTensor",
    "Schedule",
    "Summary",
    "advance",
    "blame",
    "capture",
    "data_parallel_rank",
    "dual_range_regularizer",
    "explain",
    "export_mlir",
    "load_state_dict",
    "monitor",
    "name_modules",
    "plain_state_dict",
    "presets",
    "quantize",
    "reparametrize",
    "set_data_parallel_rank",
    "split",
    "state_dict",
    "summary",
    "unreparametrize",
]


def __getattr__(name: str) -> Any:
    """Loads a public name's module when it is first asked for: importing the package stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'metis_compile' has no attribute {name!r}")
    return getattr(importlib.import_module(f"metis_compile.{_HOMES[name]}"), name)
