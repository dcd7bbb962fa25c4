"""What a policy costs on a device, by the roofline: `explanation.cost("b200")`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metis_compile.cost_model.devices import Device
from metis_compile.cost_model.kernels import at
from metis_compile.spelling import did_you_mean

if TYPE_CHECKING:
    from metis_compile.cost_model.kernels import Kernel
    from metis_compile.inspection.explain import ExplainedSite, Explanation

COLUMNS = ("product", "quantization", "tails", "bases")
_COLUMN_OF = {"decode": "quantization"}  # what a kind of kernel is counted under


@dataclass(frozen=True, kw_only=True)
class SitePrediction:
    """Seconds of one product. What it shares with others counts in parts."""

    site: ExplainedSite = field(repr=False)
    seconds: Mapping[str, float]  # one of COLUMNS -> seconds
    plain: float  # seconds of the product where nothing is quantized

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @property
    def too_small(self) -> bool:
        """Whether the product is quantized and takes longer so."""
        return self.site.reason is None and self.total > self.plain


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A step's forward and backward on a device, in seconds, beside the model without quantization."""

    device: Device
    baseline: str  # what the model computes in without quantization: "bf16", "float32"
    sizes: Mapping[str, int]  # of the sizes that were symbols
    sites: tuple[SitePrediction, ...]
    rest: Mapping[str, float]  # kind of kernel -> seconds: attention, and what is no product
    plain: Mapping[str, float]  # kind of kernel -> seconds without quantization
    saved_bytes: int  # for backward, parameters not counted
    plain_saved_bytes: int

    @property
    def seconds(self) -> float:
        return sum(site.total for site in self.sites) + sum(self.rest.values())

    @property
    def plain_seconds(self) -> float:
        return sum(self.plain.values())

    @property
    def ratio(self) -> float:
        """Of the step's time, to that without quantization."""
        return self.seconds / self.plain_seconds if self.plain_seconds else 1.0

    def by_kind(self) -> dict[str, float]:
        """Kind of kernel -> seconds of the step."""
        found: dict[str, float] = defaultdict(float, self.rest)
        for site in self.sites:
            for kind, seconds in site.seconds.items():
                found[kind] += seconds
        return dict(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, fit for JSON."""
        return {
            "device": self.device.to_dict(),
            "baseline": self.baseline,
            "sizes": dict(self.sizes),
            "ratio": self.ratio,
            "seconds": self.by_kind(),
            "plain_seconds": dict(self.plain),
            "saved_bytes": self.saved_bytes,
            "plain_saved_bytes": self.plain_saved_bytes,
            "sites": [
                {
                    "module": s.site.module,
                    "gemm": s.site.gemm,
                    "op": s.site.op,
                    "seconds": dict(s.seconds),
                    "plain_seconds": s.plain,
                    "too_small": s.too_small,
                }
                for s in self.sites
            ],
        }


def predict(explanation: Explanation, device: Device, sizes: Mapping[str, int]) -> Prediction:
    """Raises ValueError for a size that is no symbol of the explanation, or less than 1."""
    known = explanation.sizes
    for name, size in sizes.items():
        if name not in known:
            there = ", ".join(known) or "none: mark a dimension as dynamic for one"
            raise ValueError(f"metis: there is no symbolic size {name!r}; there are {there}{did_you_mean(name, known)}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"metis: size {name} must be a whole number of at least 1, got {size!r}")
    sizes = {**known, **sizes}
    known_seconds: dict[int, float] = {}

    def seconds(kernel: Kernel) -> float:
        if id(kernel) not in known_seconds:
            known_seconds[id(kernel)] = kernel.seconds(device, sizes)
        return known_seconds[id(kernel)]

    def by_kind(kernels: Any) -> dict[str, float]:
        found: dict[str, float] = defaultdict(float)
        for kernel, times in kernels:
            found[kernel.kind] += seconds(kernel) * times
        return dict(found)

    sites = []
    for site in explanation.sites:
        assert site.cost is not None
        spent = dict.fromkeys(COLUMNS, 0.0)
        for kernel, products in site.cost.kernels:
            spent[_COLUMN_OF.get(kernel.kind, kernel.kind)] += seconds(kernel) / products
        plain = sum(seconds(kernel) / products for kernel, products in site.cost.plain)
        sites.append(SitePrediction(site=site, seconds=spent, plain=plain))
    units = {k.unit for k, _ in explanation.plain_kernels if k.kind == "product" and at(k.flops, sizes)}
    return Prediction(
        device=device,
        baseline="float32" if "float32" in units and not device.autocast else "bf16",
        sizes=sizes,
        sites=tuple(sites),
        rest=by_kind(explanation.rest),
        plain=by_kind(explanation.plain_kernels),
        saved_bytes=explanation.saved_bytes,
        plain_saved_bytes=explanation.plain_saved_bytes,
    )
