import json
from typing import Any

import pytest
import torch

from metis_compile.bench import quantize, rounds
from metis_compile.bench.errors import BenchError
from metis_compile.bench.report import write
from metis_compile.bench.shapes import spec_of
from metis_compile.bench.turns import WARM_UP
from metis_compile.bench.worker import main
from metis_compile.numerics import encode

CASE = {"source": "x", "blocks": "rows", "bytes": 3_000_000, "times": [2e-3, 4e-3], "copies": [1e-3, 3e-3]}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rounds.FLUSHED, "cpu", 1000)


def test_shares_are_of_a_copy_in_the_same_round(answering: Any, options: Any, console: Any) -> None:
    jobs = answering(lambda job: {"cases": [CASE, CASE | {"blocks": "both"}]})
    report = quantize.bench_quantize(["1000x2000"], ["nvfp4", "mxfp8"], "float32", "cpu", options, console)
    assert [job.label for job in jobs] == [
        "1000x2000 float32, nvfp4 1x16 nearest",
        "1000x2000 float32, mxfp8 1x32 nearest floor",
    ]
    assert all(job.request["sizes"] == [1000, 2000] and job.steps == WARM_UP + 2 for job in jobs)
    assert report.cells[0] == [
        "1000x2000", "nvfp4 1x16 nearest", "x, rows", "3000.0 us", "1.500", "1 GB/s", "62 % (56-69)",
    ]  # fmt: skip
    row = report.numbers["rows"][1]
    assert (row["blocks"], row["nanoseconds_an_element"], row["share_of_copy"]["median"]) == ("both", 1.5, 0.625)
    assert write(report, options)["png"].read_bytes().startswith(b"\x89PNG")


def test_what_failed_is_left_out_and_named(answering: Any, options: Any, console: Any) -> None:
    answering(lambda job: None if "mxfp8" in job.label else {"cases": [CASE]})
    report = quantize.bench_quantize(["16x32"], ["nvfp4", "mxfp8"], "float32", "cpu", options, console)
    assert [row["format"] for row in report.numbers["rows"]] == ["nvfp4 1x16 nearest"]
    assert [failure.label for failure in report.measured.failures] == ["16x32 float32, mxfp8 1x32 nearest floor"]
    assert write(report, options)["png"].stat().st_size > 1000


@pytest.mark.parametrize(
    ("shape", "format", "dtype", "device", "message"),
    [
        ("16", "nvfp4", "float32", "cpu", "a shape must be ROWSxCOLUMNS in numbers above 0, got '16'"),
        ("16x32", "nvfp5", "float32", "cpu", "nvfp5"),
        ("16x32", "nvfp4", "float64", "cpu", "dtype must be float32, bfloat16, float16, got 'float64'"),
        ("16x32", "fp8 row nearest", "float32", "cuda", "on a GPU the blocks must be one of 1x16, .*'fp8 row nearest'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(
    answering: Any, options: Any, console: Any, shape: str, format: str, dtype: str, device: str, message: str
) -> None:
    jobs = answering(lambda job: None)
    with pytest.raises(BenchError, match=message):
        quantize.bench_quantize([shape], [format], dtype, device, options, console)
    assert jobs == []


def test_the_worker_times_the_kernels_of_a_cpu(small: None) -> None:
    how: dict[str, Any] = {"sizes": [48, 64], "dtype": "float32", "device": "cpu", "rounds": 3}
    cases = quantize.measure("nvfp4 1x16 stochastic round_up", None, lambda done: None, **how)["cases"]
    assert [(case["source"], case["blocks"]) for case in cases] == [("x", "rows"), ("x", "columns"), ("x", "both")]
    once = 48 * 64 * 4 + 48 * 32 + 48 * 4  # of float32; codes and scales
    assert [case["bytes"] for case in cases] == [once, once, 2 * once]
    assert all(len(case["times"]) == len(case["copies"]) == 3 for case in cases)
    square = quantize.measure("nvfp4 16x16 nearest", None, lambda done: None, **how)["cases"]
    assert [case["blocks"] for case in square] == ["rows", "columns"]


def test_a_process_needs_no_settings_of_a_model(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    request = {"kind": "quantize", "candidate": "mxfp8", "settings": None, "threads": threads}
    how = {"sizes": [16, 32], "dtype": "float32", "device": "cpu", "rounds": 1}
    assert main(json.dumps(request | how)) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("step") for line in lines] == [*range(1, WARM_UP + 2), None]
    assert len(lines[-1]["done"]["cases"]) == 3


def test_a_copy_reads_and_writes_so_many_bytes_together() -> None:
    room = torch.stack([torch.zeros(40), torch.ones(40)]).to(torch.uint8)
    quantize.copy_of(room, 50)()
    assert room[0].tolist() == [1] * 25 + [0] * 15


def test_what_is_timed_on_a_cpu_is_the_quantization() -> None:
    x, spec = torch.randn(48, 64), spec_of("nvfp4")
    for (_, blocks), (run, _) in quantize.cases_on_cpu(x, spec).items():
        if blocks != "both":
            run()
            codes, scales = run.keywords["codes"], run.keywords["block_scales"]  # type: ignore[attr-defined]
            expected = encode(x, spec, quantize.AXES[blocks][0])
            assert torch.equal(codes, expected[0])
            assert torch.equal(scales.view(torch.uint8), expected[1].view(torch.uint8))


def test_sources_and_orientations_on_a_gpu(triton_on_cpu: Any) -> None:
    """Under Triton's interpreter."""
    x = torch.randn(48, 64)
    cases = quantize.cases_on_cuda(x, spec_of("nvfp4"))
    assert set(cases) == {
        *(
            (source, blocks)
            for source in quantize.SOURCES
            for blocks in quantize.AXES
            if (source, blocks) != ("x H", "both")
        ),
        *((source, "amax alone") for source in ("x - rank 16", "x - rank 64", "x H")),
    }
    codes, scales = 48 * 32, 48 * 4
    assert cases["x", "both"][1] == x.nbytes + 2 * (codes + scales) + 4
    assert cases["x - rank 16", "rows"][1] == x.nbytes + codes + scales + 4 + 2 * 16 * (48 + 64)
    assert cases["x H", "amax alone"][1] == x.nbytes + 64
    for run, _ in cases.values():
        run()
    assert {blocks for _, blocks in quantize.cases_on_cuda(x, spec_of("nvfp4 16x16 nearest"))} == {
        "rows", "columns", "amax alone",
    }  # fmt: skip
    assert not any(blocks == "amax alone" for _, blocks in quantize.cases_on_cuda(x, spec_of("mxfp8")))


def test_swizzled_scales_are_timed_where_products_read_them(triton_on_cpu: Any) -> None:
    triton_on_cpu.capability = 100
    x = torch.randn(48, 64)
    cases = quantize.cases_on_cuda(x, spec_of("mxfp8"))
    swizzled = {key: case for key, case in cases.items() if "swizzled" in key[1]}
    assert set(swizzled) == {("x", f"{blocks}, swizzled") for blocks in quantize.AXES}
    assert cases["x", "rows, swizzled"][1] == x.nbytes + 48 * 64 + 512
    for run, _ in swizzled.values():
        run()
    assert not any("swizzled" in blocks for _, blocks in quantize.cases_on_cuda(x, spec_of("nvfp4 16x16 nearest")))


@pytest.mark.gpu
def test_the_worker_on_a_gpu() -> None:
    how: dict[str, Any] = {"sizes": [256, 512], "dtype": "bfloat16", "device": "cuda", "rounds": 2}
    cases = quantize.measure("nvfp4", None, lambda done: None, **how)["cases"]
    assert all(len(case["times"]) == 2 and min(case["times"]) > 0 for case in cases)
