"""What backward may hold of a split activation: how many bits, and how far the weight's gradient is off.

    OMP_NUM_THREADS=1 python benchmarks/wgrad_forms.py best metis --out benchmarks/results/wgrad-forms

With X = R + L F split along its dominant directions F, dW = G^T X contracts the tokens, so Q() has blocks along these.
A small GPT is trained in full precision as by ``metis compare --gemm``; inputs and output gradients of all its linears
are taken at the last step, the bases from 8 steps before, moved on by one power step. Errors are Frobenius norms over
the exact product's, geometric means over the layers, and

    along F      the part of the error along the kept directions, (dW' - dW) F^T, over dW
    G quantized  with G as the policy has it too; the thin product of X reads G unquantized

Writes NAME.json with each layer's numbers and a table for each policy.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metis_compile.compare.gemm import Side, Snapshot, relative, snapshots, treatments_of
from metis_compile.conditioning import Conditioned
from metis_compile.conditioning.compensation import compensated_left
from metis_compile.conditioning.factors import round_to_bfloat16
from metis_compile.conditioning.product import Prepared, prepare, product
from metis_compile.measure.checkout import commit
from metis_compile.measure.machine import machine
from metis_compile.measure.markdown import markdown_table
from metis_compile.numerics import QuantSpec, encode, fake_quantize
from metis_compile.policy import Policy
from metis_compile.train.settings import Settings

FORMS = {
    "ours": "Q(R) and L",
    "direct": "Q(X), no split",
    "residual": "Q(R) alone",
    "compensated": "Q(R) and L' = L + (R - Q(R)) F^T in bfloat16",
    "compensated high": "Q(R) and L' in float32",
    "of forward": "Q(R) and the L' of fprop in bfloat16",
    "both": "Q(R) and L, and Q(X) for the thin product of G",
    "bfloat16 for G": "Q(R) and L, and X in bfloat16 for the thin product of G",
    "bfloat16": "X in bfloat16, not quantized at all",
}
ONLY_IF_G_IS_SPLIT = ("both", "bfloat16 for G")
BFLOAT16, FLOAT32 = 2, 4  # bytes


@dataclass(frozen=True, kw_only=True)
class Held:
    """What backward holds of an activation [tokens, features], as wgrad reads it."""

    operand: Prepared
    nbytes: int


def held(x: Tensor, split: Conditioned, how: Any, spec: QuantSpec) -> dict[str, Held]:
    """Every form of x that FORMS lists. how: the conditioning that made the split; spec: of its residual."""
    residual, left, right = split
    packed, thin = packed_bytes(residual, spec), BFLOAT16 * (left.numel() + right.numel())
    whole = packed_bytes(x, spec)

    def with_left(l: Tensor) -> Prepared:  # noqa: E741
        return as_held(prepare(x, axis=0, spec=spec, split=split._replace(left=l)))

    def compensated(axis: int) -> Tensor:
        return compensated_left(how, left, right, x, fake_quantize(residual, spec, axis))

    ours = with_left(left)
    direct = as_held(prepare(x, axis=0, spec=spec))
    high = prepare(round_to_bfloat16(x), axis=0)
    return {
        "ours": Held(operand=ours, nbytes=packed + thin),
        "direct": Held(operand=direct, nbytes=whole),
        "residual": Held(operand=as_held(prepare(residual, axis=0, spec=spec)), nbytes=packed),
        "compensated": Held(operand=with_left(round_to_bfloat16(compensated(0))), nbytes=packed + thin),
        "compensated high": Held(
            operand=with_left(compensated(0)), nbytes=packed + thin + (FLOAT32 - BFLOAT16) * left.numel()
        ),
        "of forward": Held(operand=with_left(round_to_bfloat16(compensated(1))), nbytes=packed + thin),
        "both": Held(operand=replace(ours, x=direct.x), nbytes=packed + thin + whole),
        "bfloat16 for G": Held(operand=replace(ours, x=high.x), nbytes=packed + thin + BFLOAT16 * x.numel()),
        "bfloat16": Held(operand=high, nbytes=BFLOAT16 * x.numel()),
    }


def as_held(made: Prepared) -> Prepared:
    """The tensor itself is not there in backward: what other products read of it is what was saved."""
    thin = 0.0 if made.outer is None or made.inner is None else made.outer @ made.inner
    return replace(made, x=made.plain + thin, residual=made.plain)


def packed_bytes(x: Tensor, spec: QuantSpec) -> int:
    return sum(part.nbytes for part in encode(x, spec, 0, None))


def measure(activation: Side, gradient: Side) -> dict[str, dict[str, float]]:
    """By form: bits an element, and the three errors. activation, gradient: the operands of one wgrad."""
    split, treatment, x = activation.split, activation.treatment, activation.now
    assert split is not None
    assert treatment is not None
    assert treatment.spec is not None
    exact = product(gradient.plain(), activation.plain())
    basis = split.right / split.right.norm(dim=1, keepdim=True)
    high, low = gradient.plain(), gradient.prepared()
    found = {}
    for name, form in held(x, split, treatment.split, treatment.spec).items():
        if name in ONLY_IF_G_IS_SPLIT and gradient.split is None:
            continue
        made = product(high, form.operand)
        found[name] = {
            "bits": 8 * form.nbytes / x.numel(),
            "error": relative(made, exact),
            "along": float(((made - exact) @ basis.mT).norm() / exact.norm()),
            "error_with_g": relative(product(low, form.operand), exact),
        }
    return found


def layers(
    policy: str, model: Any, tokens: Tensor, before: dict[str, Snapshot], now: dict[str, Snapshot]
) -> Iterator[tuple[str, dict[str, dict[str, float]]]]:
    """Every linear whose activation the policy splits in wgrad, by its module's name."""
    for module, gemm, treatments in treatments_of(policy, model, tokens):
        if gemm == "wgrad" and "activation" in treatments and treatments["activation"].split is not None:
            sides = [
                Side(role, 0, treatments.get(role), getattr(before[module], role), getattr(now[module], role), gemm)
                for role in ("activation", "gradient")
            ]
            yield module, measure(*sides)


def means(of_layers: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Geometric means over layers; of bits, the mean over layers."""
    found: dict[str, dict[str, float]] = {}
    for form in of_layers[0]:
        values = {key: torch.tensor([layer[form][key] for layer in of_layers]).double() for key in of_layers[0][form]}
        found[form] = {key: float(v.mean() if key == "bits" else v.log().mean().exp()) for key, v in values.items()}
    return found


def table(of_forms: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    headings = ["held for wgrad", "bits an element", "dW error", "along F", "G quantized"]
    rows = [
        [FORMS[form], f"{v['bits']:.2f}", f"{v['error']:.4f}", f"{v['along']:.5f}", f"{v['error_with_g']:.4f}"]
        for form, v in of_forms.items()
    ]
    return markdown_table(headings, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policies", nargs="+", metavar="POLICY", help="a preset or policy file that splits activations")
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("runs/wgrad-forms"))
    arguments = parser.parse_args()
    settings = Settings(policy="high", batch=16, steps=arguments.steps)
    about = {"machine": machine(), "commit": commit(), "steps": settings.steps, "width": settings.width}
    model, (before, now) = snapshots(settings, lambda step, loss: print(f"step {step}: {loss:.4f}", flush=True))
    tokens = torch.zeros(settings.batch, settings.context, dtype=torch.int64)
    policies = {}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for policy in arguments.policies:
        found = dict(layers(policy, model, tokens, before, now))
        if not found:
            parser.error(f"a policy must split activations in wgrad, got {policy!r}")
        summed = means(list(found.values()))
        name = Path(policy).name.removesuffix(".toml")
        policies[name] = {"digest": Policy.load(policy).digest(), "means": summed, "layers": found}
        (arguments.out / f"wgrad-{name}.md").write_text(table(summed))
        print(f"{policy}\n{table(summed)}", flush=True)
    (arguments.out / "wgrad.json").write_text(json.dumps(about | {"policies": policies}, indent=1) + "\n")


if __name__ == "__main__":
    main()
