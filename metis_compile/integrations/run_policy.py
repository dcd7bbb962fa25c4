"""The policy of a whole training run, given to a callback: METIS_POLICY, for as long as the process lives."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import ClassVar

from metis_compile.defaults import DEFAULT_POLICY
from metis_compile.options import POLICY_VARIABLE, environment_policy
from metis_compile.policy import Policy, Schedule, presets
from metis_compile.policy.schedule import load


class RunPolicy:
    """A policy that graphs are compiled with where no option of `torch.compile` names one.

    policy: a preset's name, a path, a `Policy` or a `Schedule`, or None for what METIS_POLICY says, or else the
    default. Raises PolicyError for a mistake in it.
    """

    _written: ClassVar[str | None] = None  # what the last of these has put into the environment
    _folders: ClassVar[list[tempfile.TemporaryDirectory[str]]] = []

    def __init__(self, policy: str | os.PathLike[str] | Policy | Schedule | None) -> None:
        self.given = None if policy is None else load(policy)
        is_path = policy is not None and not isinstance(policy, (Policy, Schedule)) and policy not in presets()
        self._place = Path(policy).resolve() if is_path else policy  # type: ignore[arg-type]

    @property
    def policy(self) -> Policy | Schedule:
        """Raises PolicyError, with METIS_POLICY named, for a mistake in what the environment says."""
        return self.given or environment_policy() or Policy.load(DEFAULT_POLICY)

    def apply(self) -> None:
        """Puts the policy into the environment.

        Raises ValueError if METIS_POLICY names another one already that no callback has put there, and PolicyError as
        `policy` does.
        """
        if self.given is None:
            if RunPolicy._written is not None and os.environ.get(POLICY_VARIABLE) == RunPolicy._written:
                del os.environ[POLICY_VARIABLE]  # of a run before this one, in the same process
                RunPolicy._written = None
            self.policy  # noqa: B018  # a mistake is said before the first step
            return
        there = os.environ.get(POLICY_VARIABLE)
        if there and there != RunPolicy._written:
            theirs = environment_policy()
            if theirs != self.given:
                raise ValueError(
                    f"metis: the callback was given the policy {self.given.name}, and {POLICY_VARIABLE}={there} in the "
                    "environment names another: leave one of them out"
                )
            return
        os.environ[POLICY_VARIABLE] = RunPolicy._written = self._named()

    def _named(self) -> str:
        """A name or a path by which the policy can be loaded again, in this process and those that it starts."""
        if isinstance(self._place, (Policy, Schedule)):
            folder = tempfile.TemporaryDirectory(prefix="metis-policy-")
            RunPolicy._folders.append(folder)  # it goes when the process does
            assert self.given is not None
            name = re.sub(r"[^\w-]", "", Path(self.given.name).stem) or "policy"
            path = Path(folder.name) / f"{name}.toml"
            if isinstance(self.given, Schedule):
                self.given.write(path)
            else:
                path.write_text(self.given.to_toml())
            self._place = path
        assert self._place is not None
        return os.fspath(self._place)
