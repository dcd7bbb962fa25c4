"""Options, modes and the environment, and what is said of a wrong one. Nothing is compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from metis_compile import Policy, PolicyError
from metis_compile.defaults import DEFAULT_POLICY
from metis_compile.options import OPTIONS, read_options


def test_defaults() -> None:
    config, patches = read_options(None, None)
    assert config.policy == Policy.load(DEFAULT_POLICY)
    assert config.on_error == "raise"
    assert patches == {}


def test_policy_by_name_path_and_object(tmp_path: object) -> None:
    path = tmp_path / "run.toml"  # type: ignore[operator]
    path.write_text('extends = "mxfp8"')
    for given in ("mxfp8", str(path), path, Policy.load("mxfp8")):
        assert read_options({"policy": given}, None)[0].policy == Policy.load("mxfp8")


def test_environment_names_the_policy_where_options_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METIS_POLICY", "fp8")
    assert read_options(None, None)[0].policy == Policy.load("fp8")
    assert read_options({"policy": "mxfp4"}, None)[0].policy == Policy.load("mxfp4")


def test_the_environment_is_named_in_what_is_said_of_its_policy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("METIS_POLICY", "nvpf4")
    with pytest.raises(PolicyError, match=r"^METIS_POLICY=nvpf4: must be one of"):
        read_options(None, None)
    path = tmp_path / "run.toml"
    path.write_text('[[rule]]\ngemm = "fpop"\nrecipe = "high"')
    monkeypatch.setenv("METIS_POLICY", str(path))
    with pytest.raises(PolicyError, match=r"run.toml:2: rule 1, gemm \(METIS_POLICY=.*run.toml\): must be"):
        read_options(None, None)


def test_inductor_options_and_modes_pass_through() -> None:
    _, patches = read_options({"policy": "fp8", "epilogue-fusion": True, "triton.cudagraphs": False}, None)
    assert patches == {"epilogue_fusion": True, "triton.cudagraphs": False}
    assert read_options(None, "max-autotune-no-cudagraphs")[1]["max_autotune"] is True
    assert read_options({"mode": "max-autotune-no-cudagraphs"}, None)[1]["max_autotune"] is True


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"polcy": "fp8"}, ["'polcy'", "Did you mean 'policy'?"]),
        ({"max_autotun": True}, ["'max_autotun'", "Did you mean 'max_autotune'?"]),
        ({"max_autotune": 3}, ["'max_autotune'", "True or False", "3"]),
        ({"on_error": "ignore"}, ["on_error", "raise, leave", "'ignore'"]),
        ({"verify": "yes"}, ["verify", "'yes'"]),
        ({"mode": "max-autotoon"}, ["mode", "'max-autotoon'", "Did you mean 'max-autotune'?"]),
    ],
)
def test_a_wrong_option_is_named_with_the_nearest_valid_one(options: dict[str, object], said: list[str]) -> None:
    with pytest.raises(ValueError, match="metis:") as error:
        read_options(options, None)
    assert all(text in str(error.value) for text in said)


def test_a_wrong_policy_is_a_policy_error() -> None:
    with pytest.raises(PolicyError, match="nvfp4"):
        read_options({"policy": "nvpf4"}, None)


def test_every_option_is_documented() -> None:
    config, _ = read_options(None, None)
    assert set(vars(config)) - {"schedule"} <= set(OPTIONS), "a schedule is given as the policy"
