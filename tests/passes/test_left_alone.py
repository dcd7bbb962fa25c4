"""Products that are listed and left in high precision, whatever the policy says, and why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import capture_graphs, sites_of
from torch import Tensor, nn

import metis_compile
from metis_compile import Policy

EVERYTHING = Policy.from_toml(
    """
    [recipe.all]
    weight = { format = "nvfp4" }
    activation = { format = "nvfp4" }
    gradient = { format = "nvfp4" }
    [[rule]]
    recipe = "all"
    """,
)


LEFT = {
    "float64": (lambda x, w: (x.double() @ w.double()).sum(), "dtype float64"),
    "complex": (lambda x, w: (x.to(torch.complex64) @ w.to(torch.complex64)).real.sum(), "dtype complex64"),
    "integer": (lambda x, w: (x.to(torch.int32) @ w.detach().to(torch.int32)).sum() + w.sum(), "dtype int32"),
    "float8 weight": (
        lambda x, w: x @ w.to(torch.float8_e4m3fn).to(torch.float32),
        "its weight is decoded from float8_e4m3fn",
    ),
    "int8 weight": (
        lambda x, w: x @ (w.detach().to(torch.int8).float() * w.sum()),
        "its weight is decoded from int8",
    ),
    "bilinear": (lambda x, w: F.bilinear(x, x, w[None]), "a bilinear form"),
    "convolution": (lambda x, w: F.conv1d(x[None], w[:, :, None]), "a convolution"),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone_with_the_reason(name: str) -> None:
    function, reason = LEFT[name]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 16))

        def forward(self, x: Tensor) -> Tensor:
            return function(x, self.weight)

    x = torch.randn(16, 16, requires_grad=True)
    found = sites_of(capture_graphs(Model(), x, policy=EVERYTHING))
    assert found
    assert any(reason in str(s.reason) for s in found), [s.reason for s in found]
    fprops = [s for s in found if s.gemm == "fprop"]
    assert all(s.reason is not None for s in fprops)


def test_what_is_left_alone_has_a_size_if_it_is_a_product_of_matrices() -> None:
    """Its FLOPs count as high: a model of such products is not one that is all quantized."""

    def function(x: Tensor, w: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return torch._int_mm(x, w), F.conv1d(image, image[:2, :, :3])

    x, w = torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 48, dtype=torch.int8)
    explanation = metis_compile.explain(function, x, w, torch.ones(4, 4, 8), policy=EVERYTHING)
    product, convolution = explanation.sites
    assert (product.m, product.n, product.k, product.flops) == (32, 48, 16, 2 * 32 * 48 * 16)
    assert convolution.flops == 0
    assert "100.0 % high" in str(explanation)
    assert "0 x 0" not in str(explanation)


def test_uint8_images_are_not_quantized_operands() -> None:
    def f(image: Tensor, w: Tensor) -> Tensor:
        return F.linear(image.float() / 255, w)

    found = sites_of(
        capture_graphs(
            f,
            torch.randint(0, 255, (16, 16), dtype=torch.uint8),
            torch.randn(16, 16, requires_grad=True),
            policy=EVERYTHING,
        )
    )
    assert [s.reason for s in found] == [None, None]


def test_products_of_nested_graphs_are_listed_and_left() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, self.a, self.b, (x,))

    class Region(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            @torch.compiler.nested_compile_region
            def region(x: Tensor) -> Tensor:
                return torch.relu(self.a(x))

            return region(region(x))

    for model, least in ((Branches(), 4), (Region(), 3)):
        found = sites_of(capture_graphs(model, torch.randn(16, 16, requires_grad=True), policy=EVERYTHING))
        assert len(found) >= least
        assert all("inside a nested graph" in str(s.reason) for s in found)
