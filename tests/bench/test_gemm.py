from typing import Any

import pytest
import torch

from metis_compile.bench import gemm
from metis_compile.bench.errors import BenchError
from metis_compile.bench.report import write
from metis_compile.bench.shapes import sizes_of, spec_of
from metis_compile.bench.turns import WARM_UP

ANSWER = {
    "times": {gemm.BASELINE: [2e-3, 4e-3], gemm.SCALED: [1e-3, 2e-3], "nvfp4": [4e-3, 8e-3]},
    "chosen": {"nvfp4": "metis_gemm_emulated_3: BLOCK_M=128"},
    "off": {"nvfp4": 1e-3},
}


def test_speeds_are_over_cublas_of_the_same_round(answering: Any, options: Any, console: Any) -> None:
    jobs = answering(lambda job: ANSWER)
    report = gemm.bench_gemm(["1000x2000x500"], ["nvfp4", "nvfp4"], "cuda", options, console)
    (job,) = jobs
    assert (job.worker, job.steps, job.label) == ("metis_compile.bench.worker", WARM_UP + 2, "1000x2000x500")
    expected = {"sizes": [1000, 2000, 500], "formats": ["nvfp4"], "device": "cuda", "rounds": 2}
    assert {name: job.request[name] for name in expected} == expected
    assert report.cells == [
        ["1000x2000x500", gemm.BASELINE, "3000.0 us", "1", "1.00x (1.00-1.00)", "-"],
        ["1000x2000x500", gemm.SCALED, "1500.0 us", "1", "2.00x (2.00-2.00)", "-"],
        ["1000x2000x500", "nvfp4", "6000.0 us", "0", "0.50x (0.50-0.50)", "metis_gemm_emulated_3"],
    ]
    row = report.numbers["rows"][2]
    assert row["tflops"] == pytest.approx(2e9 / 6e-3 / 1e12)
    assert (row["chosen"], row["off"], row["speed"]["median"]) == (ANSWER["chosen"]["nvfp4"], 1e-3, 0.5)
    assert write(report, options)["png"].read_bytes().startswith(b"\x89PNG")


def test_what_failed_is_left_out_and_named(answering: Any, options: Any, console: Any) -> None:
    answering(lambda job: None if job.label == "4x4x4" else ANSWER)
    report = gemm.bench_gemm(["4x4x4", "8x8x8"], ["nvfp4"], "cuda", options, console)
    assert {row["m"] for row in report.numbers["rows"]} == {8}
    assert [failure.label for failure in report.measured.failures] == ["4x4x4"]
    assert write(report, options)["png"].stat().st_size > 1000  # a gap among its bars


@pytest.mark.parametrize(
    ("shapes", "formats", "device", "message"),
    [
        (["4x4x4"], ["nvfp4"], "cpu", "products of packed operands need a CUDA GPU, got device 'cpu'"),
        (["4x4"], ["nvfp4"], "cuda", "a shape must be MxNxK in numbers above 0, got '4x4'"),
        (["4x4x4"], ["nvfp5"], "cuda", "nvfp5"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    answering: Any, options: Any, console: Any, shapes: list[str], formats: list[str], device: str, message: str
) -> None:
    jobs = answering(lambda job: None)
    with pytest.raises(BenchError, match=message):
        gemm.bench_gemm(shapes, formats, device, options, console)
    assert jobs == []


def test_the_shapes_and_formats_that_are_measured_by_default() -> None:
    assert {m for m, _, _ in (sizes_of(shape, ("M", "N", "K")) for shape in gemm.SHAPES)} == {4096, 8192}
    assert [spec_of(text).format for text in gemm.FORMATS] == list(gemm.FORMATS)


def test_products_agree_and_the_choice_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Inductor, whose autotuner is made up."""
    savers: list[Any] = []
    monkeypatch.setattr(gemm, "add_feedback_saver", savers.append)
    monkeypatch.setattr(torch, "compile", lambda function, **how: function)
    a, b = torch.randn(2, 32, 64).bfloat16()
    for text, swizzled in [*((text, False) for text in gemm.FORMATS), ("nvfp4", True), ("mxfp8", True)]:
        chosen: dict[str, str] = {}
        call, off = gemm.packed(a, b, spec_of(text), chosen, text, swizzled)
        assert off == 0
        assert 0 < gemm.difference(call(), a @ b.T) < 0.2
        quick, slow = (type("", (), {"name": n, "description": "BLOCK_M=64"}) for n in ("template", "metis_gemm"))
        savers[-1]({slow: 2.0, quick: 1.0}, "another", None)
        assert chosen == {}
        savers[-1]({slow: 2.0, quick: 1.0}, gemm.NAME, None)
        savers[-1]({slow: 1.0, quick: 2.0}, gemm.NAME, None)  # of the next one that is compiled
        assert chosen == {text: "template: BLOCK_M=64"}


def test_what_inductors_autotuner_chose_has_a_name(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under Triton's interpreter, with the smallest of the configurations."""
    from metis_compile.kernels.gemm import lowering

    def smallest(configs: Any, m: int, n: int) -> Any:
        return [min(configs, key=lambda c: c.block_m * c.block_n * c.block_k)]

    lowering.register_gemm()
    monkeypatch.setattr(lowering, "configs_for", smallest)
    chosen: dict[str, str] = {}
    a, b = torch.randn(2, 16, 32).bfloat16()
    call, off = gemm.packed(a, b, spec_of("nvfp4"), chosen, "nvfp4")
    assert off <= gemm.TOLERANCE
    assert call().dtype == torch.bfloat16
    assert chosen["nvfp4"].startswith(("metis_gemm: ", "metis_gemm_emulated"))


def test_fp8_by_row_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain torch in place of cuBLAS: what the elements were divided by is what the scales multiply by."""

    def stand_in(a: Any, b: Any, a_scale: Any, b_scale: Any, dtype: Any) -> Any:
        assert (a.dtype, b.dtype) == (torch.float8_e4m3fn, torch.float8_e4m3fn)
        assert (tuple(a_scale.shape), tuple(b_scale.shape), b.stride(0)) == ((32, 1), (1, 48), 1)
        return ((a.float() @ b.float()) * a_scale * b_scale).to(dtype)

    monkeypatch.setattr(gemm, "scaled_mm", stand_in)
    a, b = torch.randn(32, 64).bfloat16() * torch.arange(1, 33)[:, None], torch.randn(48, 64).bfloat16()
    assert 0 < gemm.difference(gemm.scaled_by_row(a, b)(), a.float() @ b.float().T) < 0.05


def test_plain_inductors_product(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled.append(function) or function)
    a, b = torch.randn(2, 32, 64).bfloat16()
    assert torch.equal(gemm.plain(a, b)(), a @ b.T)
    assert compiled == [torch.mm]


def test_what_is_off() -> None:
    assert gemm.difference(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])) == 0.5


@pytest.mark.gpu
def test_the_worker_times_all_ways() -> None:
    result = gemm.measure(
        "", None, lambda done: None, sizes=[256, 512, 128], formats=["nvfp4", "fp8"], device="cuda", rounds=2
    )
    assert [len(times) for times in result["times"].values()] == [2] * len(result["times"])
    assert set(result["times"]) >= {gemm.BASELINE, gemm.INDUCTOR, "nvfp4", "fp8"}
    swizzled = {"nvfp4, swizzled"} if torch.cuda.get_device_capability()[0] == 10 else set()
    assert set(result["chosen"]) == set(result["off"]) == {"nvfp4", "fp8"} | swizzled
