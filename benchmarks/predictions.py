"""What the cost model predicts beside what was measured: steps on a CPU, and published steps on GPUs.

    python benchmarks/predictions.py --out benchmarks/results/predictions

The CPU is the one of benchmarks/results/profile: its rates are the FLOPs (or quantized elements) of `high` and `nvfp4`
at width 512 over the time that the profile has for them, its bandwidth is that of the profile's copies. So `nvfp4` at
width 512 is fitted in part, and all else is predicted. The GPUs are those of NVIDIA's specifications.

Writes predictions.json and machine.json, which `metis explain --device` takes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from metis_compile import Explanation, explain
from metis_compile.bench.size import settings_of
from metis_compile.cost_model import Device
from metis_compile.train.trainer import build

RESULTS = Path(__file__).parent / "results"
START = 5e-6  # seconds, of a kernel on the CPU
LLAMA = ("nvfp4", "fp8", "best")
DEVICES = ("h100", "h200", "b200", "b300")


def explained(policy: str, model: str, width: int, layers: int, tokens: int, dtype: torch.dtype) -> Explanation:
    """A model of `metis bench step`, on the meta device."""
    settings = settings_of(width=width, layers=layers, tokens=tokens, device="cpu", dtype="float32", model=model)
    with torch.device("meta"):
        made = build(settings).to(dtype)
        given = torch.zeros(settings.batch, settings.context, dtype=torch.int64)
    return explain(made, given, policy=policy)


def device_of(profile: dict[str, Any], high: Explanation, nvfp4: Explanation) -> Device:
    """The CPU that a profile is of."""
    kinds = {row["policy"]: row["kinds"] for row in profile["rows"]}
    plain = sum(k.flops * times for k, times in high.plain_kernels if k.kind == "product")
    low = [k for s in nvfp4.sites if s.cost and s.reason is None for k, _ in s.cost.kernels if k.kind == "product"]
    elements = {
        id(k): (k.elements, products)
        for s in nvfp4.sites
        if s.cost
        for k, products in s.cost.kernels
        if k.kind == "quantization"
    }
    return Device(
        name=f"{profile['machine']['threads']} threads of {profile['machine']['processor']}",
        rates={
            "float32": plain / kinds["high"]["float32 products: thin ones, the head"],
            "bfloat16": sum(k.flops for k in low) / kinds["nvfp4"]["bfloat16 products"],
            "quantize": sum(n for n, _ in elements.values()) / kinds["nvfp4"]["quantize"],
        },
        bandwidth=profile["copy_bytes_per_second"],
        start=START,
        autocast=False,
        decodes=True,
        source="benchmarks/results/profile",
    )


def on_cpu() -> tuple[Device, list[dict[str, Any]]]:
    """The CPU, and each row of the tables of steps beside its prediction."""
    profile = json.loads((RESULTS / "profile" / "profile.json").read_text())
    found: dict[tuple[str, int], Explanation] = {}

    def of(policy: str, width: int) -> Explanation:
        if (policy, width) not in found:
            found[policy, width] = explained(policy, "gpt", width, 4, 2048, torch.float32)
        return found[policy, width]

    device = device_of(profile, of("high", 512), of("nvfp4", 512))
    rows = []
    for width in (512, 1024):
        step = json.loads((RESULTS / f"step-{width}" / "step.json").read_text())
        for row in step["rows"]:
            if row["policy"] not in ("nvfp4", "averis", "metis", "best"):
                continue
            predicted = of(row["policy"], width).cost(device)
            times = {side: sorted(t["gradients"]) for side, t in row["times"].items()}
            ratios = sorted(
                a / b
                for a, b in zip(row["times"]["candidate"]["gradients"], row["times"]["plain"]["gradients"], strict=True)
            )
            rows.append(
                {
                    "policy": row["policy"],
                    "width": width,
                    "predicted": predicted.ratio,
                    "measured": ratios[len(ratios) // 2],
                    "predicted_seconds": predicted.seconds,
                    "predicted_plain_seconds": predicted.plain_seconds,
                    "plain_seconds": times["plain"][len(times["plain"]) // 2],
                }
            )
    return device, rows


def on_gpus() -> list[dict[str, Any]]:
    """One block of Llama-3 8B, 8192 tokens in bfloat16, by device."""
    rows = []
    for policy in LLAMA:
        found = explained(policy, "llama-8b-block", 4096, 1, 8192, torch.bfloat16)
        for device in DEVICES:
            predicted = found.cost(device)
            products = [s for s in predicted.sites if s.site.reason is None]
            rows.append(
                {
                    "policy": policy,
                    "device": device,
                    "speed_of_step": 1 / predicted.ratio,
                    "speed_of_linears": sum(s.plain for s in products) / sum(s.total for s in products),
                    "speed_of_products": sum(s.plain for s in products) / sum(s.seconds["product"] for s in products),
                }
            )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "predictions")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    cpu, steps = on_cpu()
    (out / "machine.json").write_text(json.dumps({"device": cpu.to_dict()}, indent=2) + "\n")
    for each in steps:
        print(each)
    gpus = on_gpus()
    for each in gpus:
        print(each)
    (out / "predictions.json").write_text(json.dumps({"cpu": steps, "gpu": gpus}, indent=2) + "\n")
