"""The policy as it was written, and the files that it extends or names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from metis_compile.html_report.blocks import Code, Fold, Section
from metis_compile.policy import Policy, Schedule
from metis_compile.policy.document import Document, read_reference

__all__ = ["policy_section", "policy_texts"]


def policy_texts(reference: str | os.PathLike[str] | Policy | Schedule, *, trust: bool = True) -> list[tuple[str, str]]:
    """(name, text): the file of a preset, policy or schedule, then those that it extends or that its stages name.

    Of a policy that was made in Python, the text that it would be read from. Raises PolicyError.
    """
    if isinstance(reference, Policy):
        if reference.source is None:
            return [(reference.name, reference.to_toml())]
        reference = reference.source
    if isinstance(reference, Schedule):
        if reference.source is None:
            stages = [f"# stage {i}, until {stage.until or 'the end'}" for i, stage in enumerate(reference.stages, 1)]
            found = [(reference.name, "\n".join(stages) + "\n")]
            return found + [text for stage in reference.stages for text in policy_texts(stage.policy, trust=trust)]
        reference = reference.source
    document = read_reference(reference, trust=trust)
    found = _files(document)
    for stage in document.data.get("stage", ()):
        found += _files(read_reference(stage["policy"], folder=Path(document.file).parent, trust=trust))
    return list(dict.fromkeys(found))


def _files(document: Document | None) -> list[tuple[str, str]]:
    found = []
    while document is not None:
        found.append((document.name, Path(document.file).read_text(encoding="utf-8-sig")))
        document = document.parent
    return found


def policy_section(policies: Sequence[tuple[str, Sequence[tuple[str, str]]]]) -> Section:
    """policies: a name, and the files as from `policy_texts`, for each."""
    lead = "As it was written, comments and all; a file that another extends stands below it."
    if len(policies) == 1:
        codes = [Code(title=name, text=text) for name, text in policies[0][1]]
        return Section(id="policy", title="The policy", lead=lead, blocks=codes)
    folds = [
        Fold(title=label, blocks=[Code(title=name, text=text) for name, text in files]) for label, files in policies
    ]
    return Section(id="policy", title="The policies", lead=lead, blocks=folds)
