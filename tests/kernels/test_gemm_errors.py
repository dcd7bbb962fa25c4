"""What `metis::gemm` refuses, and what happens where no template works."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor

from metis_compile.kernels.gemm.aten_fallback import product as without_template
from metis_compile.kernels.gemm.op import GEMM
from metis_compile.numerics import QuantSpec, encode

SPEC = "nvfp4 1x16 nearest"


def parts(*shape: int, spec: str = SPEC, axis: int = -1) -> list[Tensor]:
    return encode(torch.randn(shape), QuantSpec.parse(spec), axis)


def call(**changed: Any) -> Tensor:
    """A product [4, 32] @ [32, 6] with some arguments changed."""
    given = {
        "a": parts(4, 32), "a_spec": SPEC, "a_axis": 1, "a_length": 32, "a_contract": 1,
        "b": parts(6, 32), "b_spec": SPEC, "b_axis": 1, "b_length": 32, "b_contract": 1,
        "tails": [],
    }  # fmt: skip
    return GEMM(*(given | changed).values())


def test_the_right_arguments() -> None:
    assert call().shape == (4, 6)
    assert call(tails=[torch.randn(4, 3), torch.randn(3, 6)]).shape == (4, 6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"a": []}, ValueError, "metis::gemm: a must be a quantized matrix or batch of matrices, got no parts"),
        ({"a": parts(2, 2, 4, 32), "a_axis": 3, "a_contract": 3}, ValueError, "of matrices, got 4 dimensions"),
        ({"b": parts(6, 32)[:2]}, ValueError, f"metis::gemm: b of '{SPEC}' has 3 parts, got 2"),
        (
            {"b_spec": "nvfp5 1x16 nearest"},
            ValueError,
            "metis::gemm: b_spec must be the text of a QuantSpec, got 'nvfp5 1x16 nearest': .* did you mean 'nvfp4'",
        ),
        ({"a_contract": 2}, ValueError, "metis::gemm: the contracted axis of a must be one of its last two, got 2"),
        ({"a_axis": 0}, ValueError, "must have its 1x16 blocks along the axis that is contracted, 1; they lie along 0"),
        ({"a": [p.int() for p in parts(4, 32)]}, TypeError, "codes of a must be torch.uint8 for .* got torch.int32"),
        ({"a_length": 40}, ValueError, r"codes of a must have shape \[4, 20\] for length 40, got \[4, 16\]"),
        ({"b": [p[:, :1] if p.dim() else p for p in parts(6, 32)], "b_length": 2, "a_length": 32}, ValueError, "equal"),
        ({"b": [p.to("meta") for p in parts(6, 32)]}, ValueError, "metis::gemm: b must be on cpu like a, got meta"),
        ({"tails": [torch.randn(4, 3)]}, ValueError, "tails must be pairs of left and right, got 1 tensors"),
        ({"tails": [torch.randn(4, 3), torch.randn(2, 6)]}, ValueError, r"tail 0 must be \[4, r\] and \[r, 6\], got"),
        ({"tails": [torch.ones(4, 3).int(), torch.randn(3, 6)]}, TypeError, "left of tail 0 must be float32, bfloat16"),
    ],
)
def test_errors(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(**changed)


def test_errors_are_the_same_while_tracing() -> None:
    with pytest.raises(Exception, match=r"codes of a must have shape \[4, 20\] for length 40, got \[4, 16\]"):
        torch.compile(lambda a: call(a=a, a_length=40), fullgraph=True)(parts(4, 32))


def test_tails_of_batches() -> None:
    with pytest.raises(ValueError, match="tails must be empty for batches of matrices, got 1"):
        GEMM(parts(2, 4, 32), SPEC, 2, 32, 2, parts(2, 6, 32), SPEC, 2, 32, 2, [torch.randn(4, 1), torch.randn(1, 6)])


@pytest.fixture
def broken(triton_on_cpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    from metis_compile.kernels.gemm import lowering

    lowering.register_gemm()
    lowering._reasons.cache_clear()
    caplog.set_level(logging.WARNING, "metis_compile.kernels")
    return monkeypatch, caplog


def product(a: list[Tensor], b: list[Tensor], spec: str = SPEC) -> Tensor:
    return GEMM(a, spec, 1, 32, 1, b, spec, 1, 32, 1, [])


def warnings_of(log: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in log.records if r.name == "metis_compile.kernels"]


MXFP4 = "mxfp4 1x32 nearest floor"


@pytest.mark.parametrize(
    ("error", "spec"),
    [(RuntimeError("out of resources"), SPEC), (ValueError("a compiler's mistake"), MXFP4)],
    ids=["all fail", "the autotuner fails"],
)
def test_no_template_works(broken: Any, error: Exception, spec: str) -> None:
    monkeypatch, log = broken
    from torch._inductor.autotune_process import TritonBenchmarkRequest

    for rows in (4, 5):

        def fail(*_: Any, rows: int = rows, **__: Any) -> Any:
            raise type(error)(f"{error}, with {rows} rows")

        monkeypatch.setattr(TritonBenchmarkRequest, "make_run_fn", fail)
        a, b = parts(rows, 32, spec=spec), parts(6, 32, spec=spec)
        plain = without_template(*a, *b, a=(spec, 1, 1), b=(spec, 1, 1), out=torch.empty(rows, 6))
        assert torch.equal(torch.compile(product)(a, b, spec), plain)
    (message,) = warnings_of(log)
    assert "plain torch multiplies" in message


@pytest.mark.parametrize("spec", [SPEC, MXFP4, "fp8 row nearest"])
def test_templates_that_work_say_nothing(broken: Any, spec: str) -> None:
    _, log = broken
    a, b = parts(4, 32, spec=spec), parts(6, 32, spec=spec)
    torch.testing.assert_close(torch.compile(product)(a, b, spec), product(a, b, spec), rtol=1e-5, atol=1e-5)
    assert warnings_of(log) == []
