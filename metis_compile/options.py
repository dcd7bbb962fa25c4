"""What one compile is asked to do: the options of `torch.compile(..., backend="metis", options=...)`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from metis_compile.compat import inductor_config, list_mode_options
from metis_compile.defaults import DEFAULT_POLICY
from metis_compile.policy import Policy, PolicyError, Schedule
from metis_compile.policy.schedule import load
from metis_compile.spelling import nearest_name

ON_ERROR = ("raise", "leave")
POLICY_VARIABLE = "METIS_POLICY"


@dataclass(frozen=True, kw_only=True)
class Config:
    """One compile's settings, after options and environment were read."""

    policy: Policy  # that of the first stage, where there is a schedule
    on_error: Literal["raise", "leave"] = "raise"  # "leave": a site whose rewrite fails stays in high precision
    verify: bool = False  # check the graph after every pass
    schedule: Schedule | None = None  # of the policies of a run, one stage after the other
    cpu_kernels: bool = True  # quantize with C++ kernels on the CPU; False: with ops that Inductor compiles


OPTIONS = {
    "policy": "a preset's name, a path, a metis_compile.Policy, or a metis_compile.Schedule of them (or METIS_POLICY)",
    "on_error": "'raise' (default) or 'leave': what an internal error at one site does",
    "verify": "True checks the graph after every pass (or METIS_VERIFY=1)",
    "cpu_kernels": "True (default) quantizes with C++ kernels on the CPU; False with ops that Inductor compiles",
    "mode": "one of Inductor's modes, since torch.compile takes mode= or options= but not both",
}


def read_options(options: Mapping[str, Any] | None, mode: str | None) -> tuple[Config, dict[str, Any]]:
    """Splits options into ours and Inductor's. Returns (config, Inductor's config patches).

    Raises ValueError that names the option, its value, and the nearest valid name.
    """
    given = dict(options or {})
    mode = given.pop("mode", mode)
    policy = given.pop("policy", None)
    if policy is None:
        policy = environment_policy() or DEFAULT_POLICY
    on_error = given.pop("on_error", "raise")
    if on_error not in ON_ERROR:
        raise ValueError(f"metis: option on_error must be one of {', '.join(ON_ERROR)}, got {on_error!r}")
    verify = given.pop("verify", os.environ.get("METIS_VERIFY", "") not in ("", "0"))
    if not isinstance(verify, bool):
        raise ValueError(f"metis: option verify must be True or False, got {verify!r}")
    cpu_kernels = given.pop("cpu_kernels", True)
    if not isinstance(cpu_kernels, bool):
        raise ValueError(f"metis: option cpu_kernels must be True or False, got {cpu_kernels!r}")
    patches = _mode_patches(mode)
    for key, value in given.items():
        patches.update([_inductor_option(key, value)])
    loaded = load(policy)
    schedule = loaded if isinstance(loaded, Schedule) else None
    config = Config(
        policy=loaded.stages[0].policy if isinstance(loaded, Schedule) else loaded,
        schedule=schedule,
        on_error=on_error,
        verify=verify,
        cpu_kernels=cpu_kernels,
    )
    return config, patches


def one_policy(config: Config, function: str) -> None:
    """Raises ValueError for a schedule, of which a function shows one stage alone."""
    if config.schedule is not None:
        raise ValueError(
            f"metis: {function} shows one policy, and {config.schedule.name} is a schedule: give the policy of one of "
            "its stages, as policy=metis_compile.Schedule.load(...).stages[0].policy"
        )


def environment_policy() -> Policy | Schedule | None:
    """The policy or schedule that METIS_POLICY names; None where it is not set.

    Raises PolicyError, with the variable named.
    """
    named = os.environ.get(POLICY_VARIABLE)
    if not named:
        return None
    try:
        return load(named)
    except PolicyError as error:
        where = f"{POLICY_VARIABLE}={named}"
        raise error.at(key=where if error.key is None else f"{error.key} ({where})") from None


def _mode_patches(mode: str | None) -> dict[str, Any]:
    if mode is None or mode == "default":
        return {}
    modes = list_mode_options()
    if mode not in modes:
        raise ValueError(f"metis: mode must be one of {', '.join(sorted(modes))}, got {mode!r}{_nearest(mode, modes)}")
    return dict(list_mode_options(mode))


def _inductor_option(key: str, value: Any) -> tuple[str, Any]:
    known = inductor_config.get_config_copy()
    name = key.replace("-", "_")
    if name not in known:
        raise ValueError(
            f"metis: unknown option {key!r}: neither one of metis's ({', '.join(OPTIONS)}) nor one of "
            f"torch._inductor.config's{_nearest(name, [*OPTIONS, *known])}"
        )
    default = known[name]
    if isinstance(default, bool) and not isinstance(value, bool):
        raise ValueError(f"metis: option {key!r} must be True or False, got {value!r}")
    return name, value


def _nearest(name: str, valid: Any) -> str:
    near = nearest_name(name, valid, cutoff=0.6)
    return "" if near is None else f". Did you mean {near!r}?"
