"""Files with stages: what is read, and what is said of a mistake."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from metis_compile import Policy, PolicyError, Schedule
from metis_compile.options import read_options
from metis_compile.policy.schedule import Stage, load

TEXT = """
[[stage]]
policy = "nvfp4"
until = 0.9
[[stage]]
policy = "high"
"""


def test_a_file_with_stages(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "mxfp8"')
    path = tmp_path / "run.toml"
    path.write_text('[[stage]]\npolicy = "nvfp4"\nuntil = 100\n[[stage]]\npolicy = "own.toml"')
    schedule = Schedule.load(path)
    assert [stage.until for stage in schedule.stages] == [100, None]
    assert [stage.policy for stage in schedule.stages] == [Policy.load("nvfp4"), Policy.load("mxfp8")]
    assert (schedule.name, schedule.source) == ("run.toml", str(path))
    assert load(path) == schedule == Schedule.load(schedule)
    assert load("nvfp4") == Policy.load("nvfp4")


def test_which_stage_a_step_is_in() -> None:
    schedule = Schedule.from_toml(TEXT)
    assert [schedule.stage_at(step, 10) for step in (0, 8, 9, 10, 11)] == [0, 0, 1, 1, 1]
    assert schedule.stage_at(13, 15) == 0, "a share of the steps is rounded up to whole ones: 13.5 to 14"
    assert schedule.stage_at(14, 15) == 1
    with pytest.raises(ValueError, match=r"how many there are is not known: metis_compile\.advance"):
        schedule.stage_at(0)
    by_steps = Schedule(stages=(Stage(policy=Policy.load("nvfp4"), until=3), Stage(policy=Policy.load("high"))))
    assert [by_steps.stage_at(step) for step in (2, 3)] == [0, 1]


def test_equality_and_digest_are_of_the_meaning(tmp_path: Path) -> None:
    schedule = Schedule.from_toml(TEXT)
    assert schedule == Schedule.from_toml(TEXT + "# a comment", name="other")
    for other in (TEXT.replace("0.9", "0.8"), TEXT.replace("0.9", "9"), TEXT.replace("nvfp4", "mxfp4")):
        assert Schedule.from_toml(other) != schedule
        assert Schedule.from_toml(other).digest() != schedule.digest()
    schedule.write(tmp_path / "written.toml")
    assert Schedule.load(tmp_path / "written.toml") == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_options_take_a_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    for given in (path, Schedule.load(path)):
        config, _ = read_options({"policy": given}, None)
        assert config.schedule == Schedule.load(path)
        assert config.policy == Policy.load("nvfp4")
    monkeypatch.setenv("METIS_POLICY", str(path))
    assert read_options(None, None)[0].schedule == Schedule.load(path)
    assert read_options({"policy": "nvfp4"}, None)[0].schedule is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stage = 3", "<text>:1: stage: stages are written as [[stage]], in double brackets, got 3"),
        ('extends = "nvfp4"\n' + TEXT, "<text>:1: extends: a file with stages has nothing else"),
        ('[[stage]]\nuntil = 3\n[[stage]]\npolicy = "high"', "<text>:1: stage 1, policy: a stage must name a policy"),
        ('[[stage]]\npolcy = "high"', '<text>:2: stage 1, polcy: unknown key "polcy"; a stage has the keys'),
        ('[[stage]]\npolicy = "hgh"', "<text>:2: stage 1, policy: must be one of"),
        ("[[stage]]\npolicy = 3", "<text>:2: stage 1, policy: must be a preset's name or a path, got 3"),
        ('[[stage]]\npolicy = "high"\nuntil = 3', "<text>:3: stage 1, until: the last stage lasts to the end"),
        ('[[stage]]\npolicy = "high"\n' + TEXT, "<text>:1: stage 1, until: every stage but the last must say where"),
        (TEXT.replace("0.9", "1.5"), "<text>:4: stage 1, until: must be a number of steps, such as 1000, or a share"),
        (TEXT.replace("0.9", "0"), "<text>:4: stage 1, until: must be a number of steps"),
        (TEXT.replace("0.9", "true"), "<text>:4: stage 1, until: must be a number of steps"),
        (TEXT.replace("0.9", "nan"), "<text>:4: stage.0.until: must be a number, got nan"),
        (
            '[[stage]]\npolicy = "fp8"\nuntil = 9\n' + TEXT.replace("0.9", "9"),
            "<text>:7: stage 2, until: must be after the stage before, which ends at 9, got 9",
        ),
        ('[[stage]]\npolicy = "high"\nuntil = 1\n' * 17, "stage: a schedule must have 1 to 16 stages, got 17"),
    ],
)
def test_mistakes(text: str, said: str) -> None:
    with pytest.raises(PolicyError) as raised:
        Schedule.from_toml(text)
    assert said in str(raised.value)


def test_a_mistake_in_the_policy_of_a_stage_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "own.toml").write_text('extends = "mxfp8"\n[[rule]]\nrecipe = "mxpf8"')
    with pytest.raises(PolicyError, match=r"own.toml:3: rule 1, recipe"):
        Schedule.from_toml('[[stage]]\npolicy = "own.toml"', folder=tmp_path)


def test_a_schedule_is_no_policy(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(TEXT)
    with pytest.raises(PolicyError, match="a file with stages is a schedule, not a policy"):
        Policy.load(path)
    (tmp_path / "on_it.toml").write_text('extends = "run.toml"')
    for given in (tmp_path / "on_it.toml", path):
        with pytest.raises(PolicyError, match=r"run.toml:2: stage: a file with stages is a schedule"):
            Policy.load(given)
    with pytest.raises(PolicyError, match=r"stages are written as"):
        Schedule.load("nvfp4")


def test_a_policy_that_names_code_is_refused_without_trust(tmp_path: Path) -> None:
    recipe = 'weight = "high"\nactivation = { format = "nvfp4", split = "own:Own" }\ngradient = "high"\n'
    (tmp_path / "own.toml").write_text(f"[recipe.own]\n{recipe}")
    with pytest.raises(PolicyError, match="trust=False"):
        Schedule.from_toml('[[stage]]\npolicy = "own.toml"', folder=tmp_path, trust=False)


def test_the_example_loads() -> None:
    path = Path(__file__).parents[2] / "examples" / "schedules" / "last-tenth.toml"
    schedule = Schedule.load(path)
    assert [stage.until for stage in schedule.stages] == [0.9, None]
    assert schedule.stage_at(1799, 2000) == 0
    assert schedule.stage_at(1800, 2000) == 1
