"""What the first step of a run compiled, in a sentence to print."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from metis_compile.passes.record import Tally, tally
from metis_compile.policy import Policy, Schedule


class FirstStep:
    """Counts what is compiled between `begin` and `end`."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._tallies: list[Tally] = []

    def begin(self) -> None:
        self._open.close()
        self._tallies = self._open.enter_context(tally())

    def end(self, given: Policy | Schedule | None) -> str:
        """What is on, in one line. given: the policy that a callback was told to use.

        Raises ValueError if the model was compiled with another one than that.
        """
        self._open.close()
        stages = given.stages if isinstance(given, Schedule) else ()
        allowed = [stage.policy for stage in stages] if stages else [given]
        for each in self._tallies:
            if given is not None and each.policy not in allowed:
                raise ValueError(
                    f"metis: the callback was given the policy {given.name}, and the model was compiled with "
                    f"{each.policy.name}, which an option of torch.compile names: leave one of them out"
                )
        return told(self._tallies, given.name if isinstance(given, Policy) else None)


def told(tallies: Sequence[Tally], name: str | None = None) -> str:
    """`metis: policy nvfp4.toml: 39 of 45 products rewritten in 1 graph`. name: what the one policy is to be called."""
    if not tallies:
        return (
            'metis: nothing was compiled with backend="metis" in the first step. If this model was not compiled with '
            'it earlier in this process, metis is off: call model.compile(backend="metis") before training'
        )
    lines = []
    for policy in dict.fromkeys(each.policy for each in tallies):
        of = [each for each in tallies if each.policy == policy]
        seen = [each for each in of if each.seen]
        rewritten, products = sum(each.rewritten for each in seen), sum(each.products for each in seen)
        parts = []
        if seen:
            parts.append(f"{rewritten} of {products} products rewritten in {_graphs(len(seen))}")
        if len(seen) < len(of):
            parts.append(f"{_graphs(len(of) - len(seen))} from Inductor's cache")
        hint = "" if rewritten or not products else "; metis_compile.explain says why none is"
        lines.append(f"metis: policy {name or policy.name}: {', '.join(parts)}{hint}")
    return "\n".join(lines)


def _graphs(count: int) -> str:
    return f"{count} graph{'s' if count > 1 else ''}"
