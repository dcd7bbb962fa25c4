"""The policy on the page is the one in the files, comments and all."""

from __future__ import annotations

from pathlib import Path

from parsed_html import Parsed

from metis_compile.html_report import Page, html, policy_section, policy_texts
from metis_compile.policy import Policy
from metis_compile.policy.presets import preset_path
from metis_compile.policy.schedule import load


def test_a_file_and_what_it_extends(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = '# <script>alert("mine")</script>\nextends = "nvfp4"\n'
    path.write_text(text)
    found = policy_texts(str(path))
    assert found[:2] == [("mine.toml", text), ("nvfp4.toml", preset_path("nvfp4").read_text())]
    assert [name for name, _ in found[2:]] == ["base.toml"]  # which the preset extends
    assert policy_texts(Policy.load(str(path))) == found
    written = html(Page(title="t", lead="", sections=[policy_section([("mine", found)])]))
    assert "<script" not in written
    assert 'alert("mine")' in Parsed(written).text


def test_a_schedule_and_its_stages(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text('extends = "nvfp4"\n')
    path = tmp_path / "run.toml"
    path.write_text('[[stage]]\npolicy = "first.toml"\nuntil = 0.9\n\n[[stage]]\npolicy = "high"\n')
    found = policy_texts(load(str(path)))
    assert [name for name, _ in found] == ["run.toml", "first.toml", "nvfp4.toml", "base.toml", "high.toml"]


def test_a_policy_made_in_python() -> None:
    policy = Policy(recipes=Policy.load("nvfp4").recipes, rules=Policy.load("nvfp4").rules, name="made")
    ((name, text),) = policy_texts(policy)
    assert name == "made"
    assert Policy.from_toml(text) == policy
