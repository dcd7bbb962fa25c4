"""Hugging Face's Trainer with metis: runs that resume, what is on, and what is said when something does not fit."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kept_bases import POLICY
from torch import Tensor
from trainer_runs import Regression, arguments, dataset, outcome, train
from transformers import Trainer, TrainerState

import metis_compile
from metis_compile import Policy, PolicyError
from metis_compile.integrations.transformers import FILE, MetisCallback, MonitorCallback, _file_to_read
from metis_compile.options import environment_policy
from metis_compile.policy.schedule import Schedule, Stage

pytestmark = pytest.mark.usefixtures("eagerly")


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names of what is not the same bit for bit."""
    return [name for name in sorted({*a, *b}) if name not in a or name not in b or not torch.equal(a[name], b[name])]


@pytest.mark.parametrize(
    "by_name", [pytest.param(True, id="by name"), pytest.param(False, id="model.compile", marks=pytest.mark.long)]
)
def test_a_run_that_resumes_is_the_uninterrupted_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_name: bool
) -> None:
    """From within an epoch, before the short batch and at the end of an epoch; evaluated in between."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_DYNAMIC", "true")
    given = {"eval_strategy": "steps", "eval_steps": 2, "by_name": by_name, "dynamic": True}
    whole = outcome(train(tmp_path / "run", **given))
    assert "up.weight.activation" in whole
    for step in (1, 2, 3):
        resumed = train(tmp_path / "run", resume=tmp_path / "run" / f"checkpoint-{step}", **given)
        assert resumed.state.global_step == 6
        assert differing(whole, outcome(resumed)) == [], step


def test_a_run_by_a_schedule_resumes_in_its_stage(tmp_path: Path) -> None:
    """Of six steps, the last two are of the second stage."""
    schedule = Schedule(stages=(Stage(policy=POLICY, until=0.6), Stage(policy=Policy.load("mxfp8"))))
    given = {"policy": schedule, "dataloader_drop_last": True, "num_train_epochs": 3}
    whole = outcome(train(tmp_path / "run", **given))
    for step in (3, 5):
        resumed = outcome(train(tmp_path / "run", resume=tmp_path / f"run/checkpoint-{step}", **given))
        assert differing(whole, resumed) == [], step
    first_alone = outcome(train(tmp_path / "first", **{**given, "policy": POLICY}))
    assert "up.weight" in differing(whole, first_alone)


def test_without_the_callback_bases_start_anew(tmp_path: Path) -> None:
    """What the callback is for: the weights go another way."""
    whole = outcome(train(tmp_path / "run", dynamic=True, callback=False))
    resumed = train(tmp_path / "run", dynamic=True, callback=False, resume=tmp_path / "run/checkpoint-3")
    assert "up.weight" in differing(whole, outcome(resumed))


def test_without_a_short_batch_no_graph_need_be_dynamic(tmp_path: Path) -> None:
    given = {"dataloader_drop_last": True, "gradient_accumulation_steps": 2}
    whole = outcome(train(tmp_path / "run", **given))
    assert differing(whole, outcome(train(tmp_path / "run", resume=tmp_path / "run/checkpoint-1", **given))) == []


def trainer(folder: Path, *callbacks: MetisCallback, compiled: Policy | str | None = "", **given: object) -> Trainer:
    """Of one step. compiled: "" for no option, None for not at all, or the policy that an option names."""
    model = Regression()
    if compiled is not None:
        model.compile(backend="metis", options={"policy": compiled} if compiled else None)
    settings = arguments(folder, **{"max_steps": 1, "save_strategy": "no", **given})
    return Trainer(model, settings, train_dataset=dataset(9), eval_dataset=dataset(4), callbacks=list(callbacks))


def test_it_says_once_what_is_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(tmp_path, MetisCallback("nvfp4"), max_steps=3).train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("metis:")]
    # the three others are those of the linear whose output goes into the loss: a head
    assert lines == ["metis: policy nvfp4.toml: 2 of 5 products rewritten in 1 graph"]


def test_it_says_that_nothing_is_compiled_or_rewritten(tmp_path: Path) -> None:
    said: list[str] = []
    trainer(tmp_path, MetisCallback("nvfp4", say=said.append), compiled=None).train()
    trainer(tmp_path, MetisCallback("high", say=said.append)).train()
    assert "metis is off" in said[0]
    assert said[1].startswith("metis: policy high.toml: 0 of 5 products rewritten in 1 graph; metis_compile.explain")


def test_what_is_compiled_once_more_has_the_policy_too(tmp_path: Path) -> None:
    """Before training, since evaluation may come first, and after it."""
    made = trainer(tmp_path, MetisCallback("fp8", say=lambda _: None))
    for run in (made.evaluate, made.train, made.evaluate):
        torch.compiler.reset()
        with metis_compile.capture() as captured:
            run()
        treatments = {str(o.decision.treatment) for g in captured.graphs for s in g.sites for o in s.operands}
        assert any("fp8" in text for text in treatments), treatments
        assert all("fp8" in text or text == "high" for text in treatments), treatments


def test_a_wrong_policy_is_named_with_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PolicyError, match="nvfp4"):
        MetisCallback("nvpf4")
    monkeypatch.setenv("METIS_POLICY", "nvpf4")
    with pytest.raises(PolicyError, match=r"^METIS_POLICY=nvpf4: must be one of .* did you mean \"nvfp4\""):
        trainer(tmp_path, MetisCallback())


def test_two_policies_are_one_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"given the policy nvfp4.toml, .* compiled with fp8.toml"):
        trainer(tmp_path, MetisCallback("nvfp4"), compiled="fp8").train()
    trainer(tmp_path, MetisCallback("fp8"))  # another run in the same process may have another
    assert environment_policy() == Policy.load("fp8")
    trainer(tmp_path, MetisCallback())  # or the default
    assert environment_policy() is None
    monkeypatch.setenv("METIS_POLICY", "mxfp4")
    with pytest.raises(ValueError, match=r"given the policy fp8.toml, and METIS_POLICY=mxfp4"):
        trainer(tmp_path, MetisCallback("fp8"))


def test_a_policy_goes_by_name_path_and_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text('extends = "mxfp8"')
    for policy in ("mxfp8", "run.toml", Path("run.toml"), Policy.load("run.toml"), POLICY):
        MetisCallback(policy).on_init_end(None, None, None)
        monkeypatch.chdir(tmp_path.parent)  # a path holds wherever the process goes
        assert environment_policy() == (POLICY if policy is POLICY else Policy.load("mxfp8"))
        monkeypatch.chdir(tmp_path)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with two checkpoints."""
    train(tmp_path / "run", max_steps=2, num_train_epochs=1)
    return tmp_path / "run"


def resume(folder: Path, checkpoint: Path, policy: Policy | str = POLICY, **given: object) -> tuple[Trainer, list[str]]:
    torch.compiler.reset()
    said: list[str] = []
    made = trainer(folder, MetisCallback(policy, say=said.append, **given), max_steps=2)  # type: ignore[arg-type]
    made.train(resume_from_checkpoint=str(checkpoint))
    return made, said


def test_the_file_holds_texts_and_tensors_alone(run: Path) -> None:
    saved = torch.load(run / "checkpoint-2" / FILE, weights_only=True)
    assert saved["digest"] == POLICY.digest()
    assert list(saved["kept"]) == ["up.weight", "down.weight"]


def test_a_checkpoint_elsewhere_is_named_or_refused(run: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(run / "checkpoint-1", tmp_path / "elsewhere")
    _, said = resume(tmp_path / "new", moved, resume_from=moved)
    assert len(said) == 1  # what is on
    with pytest.raises(
        ValueError, match=r"resumes at step 1 from a checkpoint that is not .*new/checkpoint-1: name it by"
    ):
        resume(tmp_path / "new", moved)


def test_a_checkpoint_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    """In the folder where this run's own would be."""
    other = shutil.copytree(run / "checkpoint-1", tmp_path / "new" / "checkpoint-1")
    state = TrainerState.load_from_json(str(other / "trainer_state.json"))
    state.log_history[0]["loss"] += 1.0
    state.save_to_json(str(other / "trainer_state.json"))
    with pytest.raises(ValueError, match="resumes at step 1 from a checkpoint that is not"):
        resume(tmp_path / "new", run / "checkpoint-1")


def test_what_cannot_be_put_back_is_said_or_refused(run: Path) -> None:
    _, said = resume(run, run / "checkpoint-1", "fp8")
    assert "is of the policy" in said[0]
    file = run / "checkpoint-1" / FILE
    torch.save([1], file)
    with pytest.raises(ValueError, match="is not what this callback saves"):
        resume(run, run / "checkpoint-1")
    file.unlink()
    _, said = resume(run, run / "checkpoint-1")
    assert "there is no" in said[0]


def saved_by(folder: Path, world: int) -> None:
    """As each of `world` processes does at step 3."""
    for index in range(world):
        place = SimpleNamespace(output_dir=str(folder), world_size=world, process_index=index)
        MetisCallback("fp8").on_save(place, TrainerState(global_step=3), None, model=Regression())


def test_each_process_of_a_distributed_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    """And what a run on more of them, or on one, left there goes."""
    for world, names in ((3, "012"), (2, "01"), (1, None), (2, "01")):
        saved_by(tmp_path, world)
        expected = [FILE] if names is None else [f"metis_state_{n}.pt" for n in names]
        assert sorted(p.name for p in (tmp_path / "checkpoint-3").iterdir()) == expected


def test_which_file_a_process_reads(tmp_path: Path) -> None:
    """Its own, or of fewer processes that of its rank modulo their number."""

    def read(world: int) -> list[str]:
        places = [SimpleNamespace(world_size=world, process_index=i) for i in range(world)]
        found = [_file_to_read(tmp_path / "checkpoint-3", place) for place in places]
        return ["" if path is None else path.stem.removeprefix("metis_state") for path in found]

    (tmp_path / "checkpoint-3").mkdir()
    assert read(2) == ["", ""]
    saved_by(tmp_path, 2)
    assert (read(1), read(2), read(4)) == (["_0"], ["_0", "_1"], ["_0", "_1", "_0", "_1"])
    (tmp_path / "checkpoint-3" / "metis_state_1.pt").unlink()
    with pytest.raises(ValueError, match=r"process 1 goes on with what process 1 kept .* has files of 0 alone"):
        read(2)
    saved_by(tmp_path, 1)
    assert read(3) == ["", "", ""]  # metis_state.pt


def test_statistics_while_it_trains(tmp_path: Path) -> None:
    sent: list[list[dict[str, object]]] = []
    callbacks = [MetisCallback("nvfp4"), MonitorCallback(every=2, to=[sent.append, tmp_path / "statistics.jsonl"])]
    trainer(tmp_path, *callbacks, max_steps=5, gradient_accumulation_steps=2).train()
    assert [records[0]["step"] for records in sent] == [0, 2, 4]
    assert len({len(records) for records in sent}) == 1
    assert callbacks[1].monitor is not None
    assert not callbacks[1].monitor.is_sampling  # it is closed
