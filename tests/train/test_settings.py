import pytest

from metis_compile.train.errors import TrainError
from metis_compile.train.settings import Settings, derived_seed, resolve_device


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"width": 30, "heads": 4}, "width must be a multiple of heads, got width 30, heads 4"),
        ({"learning_rate": 0.0}, "learning rate must be a finite number above 0"),
        ({"learning_rate": float("nan")}, "learning rate must be a finite number above 0"),
        ({"clip": 0.0}, "clip must be a finite number above 0, got 0.0"),
        ({"warmup": 0}, "warmup must be 1 to 300, the steps, got 0"),
        ({"warmup": 301}, "warmup must be 1 to 300, the steps, got 301"),
        ({"final_rate": 1.5}, "final rate must be 0 or more and at most 1, got 1.5"),
        ({"average_weights": -0.1}, "average weights must be 0 or more and at most 1, got -0.1"),
        ({"ema": 1.0}, "ema must be 0 or more and below 1, got 1.0"),
        ({"ema": 0.9, "average_weights": 0.2}, "are two averages of the weights: give one"),
        ({"dtype": "float16"}, "dtype must be float32 or bfloat16, got 'float16'"),
    ],
)
def test_a_bad_setting_is_named_with_its_value(changes: dict, message: str) -> None:
    with pytest.raises(TrainError, match=message):
        Settings(**changes)


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    settings = Settings(steps=100, learning_rate=1.0)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.05)
    assert rates[:20] == sorted(rates[:20])
    assert rates[19] == rates[20] == pytest.approx(1.0)
    assert rates[20:] == sorted(rates[20:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert Settings(steps=1).learning_rate_at(0) > 0


def test_warm_up_and_the_rate_at_the_end_are_settings() -> None:
    settings = Settings(steps=100, learning_rate=1.0, warmup=50, final_rate=0.0)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[:50] == pytest.approx([(step + 1) / 50 for step in range(50)])
    assert rates[50] == 1.0
    assert rates[75] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.0, abs=0.001)


def test_settings_from_a_file() -> None:
    assert Settings.from_dict({"warmup": None, "text": None, "clip": 1}) == Settings(clip=1)
    assert Settings.from_dict({"warmup": 5}) == Settings(warmup=5)
    with pytest.raises(TrainError, match=r"warmup must be a int, got 0\.5"):
        Settings.from_dict({"warmup": 0.5})


def test_differences_name_both_values() -> None:
    assert Settings(width=256).differences(Settings(width=128)) == ["width 256 and not 128"]
    assert Settings().differences(Settings()) == []


def test_derived_seeds_differ_in_every_part() -> None:
    seeds = {derived_seed(name, seed, step) for name in "ab" for seed in range(5) for step in range(50)}
    assert len(seeds) == 500
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derived_seed("noise", 0, 7) == 1341283399428282042  # a resumed run must find the same streams


def test_a_device_that_is_not_there_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert resolve_device("auto") == "cpu"
    assert resolve_device("cpu") == "cpu"
    with pytest.raises(TrainError, match="'cuda' is not there: torch sees 0 CUDA GPUs"):
        resolve_device("cuda")
    with pytest.raises(TrainError, match="got 'gpu'"):
        resolve_device("gpu")
    with pytest.raises(TrainError, match="got 'meta'"):
        resolve_device("meta")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:0") == "cuda:0"
    with pytest.raises(TrainError, match="'cuda:1' is not there: torch sees 1"):
        resolve_device("cuda:1")
