"""Does what `blame` measures in a minute rank policies as training them does?

    python benchmarks/blame_ranking.py benchmarks/results/operands/operands.json --out benchmarks/results/blame-ranking

Trains the full-precision start that the policies of that file were trained from, measures what each policy does to the
loss of validation batches there, without training, and compares with the gaps that training found, by Spearman's rank
correlation. --weights keeps the start, so that a second call begins with measuring.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from metis_compile import Policy
from metis_compile.measure.machine import machine
from metis_compile.options import read_options
from metis_compile.sensitivity.effects import effect_of
from metis_compile.sensitivity.program import program
from metis_compile.train import corpus
from metis_compile.train.determinism import deterministic
from metis_compile.train.llama import logits_of
from metis_compile.train.settings import Settings
from metis_compile.train.trainer import Trainer, build
from metis_compile.train.variant import FULL_PRECISION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trained", type=Path, help="the JSON of the trained policies")
    parser.add_argument("--out", type=Path, required=True, help="folder for the result")
    parser.add_argument("--weights", type=Path, help="file that keeps the full-precision start")
    parser.add_argument("--batches", type=int, default=4, help="validation batches to measure")
    given = parser.parse_args()
    torch.set_num_threads(1)
    trained = json.loads(given.trained.read_text())
    branch = trained["settings"]["branch"]
    settings = Settings(**{k: v for k, v in trained["settings"].items() if k != "branch"}, seed=trained["seed"])
    text = corpus.load_library()
    given.out.mkdir(parents=True, exist_ok=True)
    model = start(settings, branch, text, given.weights)
    batches = text.validation_batches(count=given.batches, batch=settings.batch, context=settings.context)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits_of(model(tokens)).flatten(0, 1), targets.flatten())

    rows: list[dict[str, Any]] = []
    high_losses = trained["high"]["losses"][branch:]
    with program(loss, batches, read_options({"policy": "high"}, None)[0]) as of_loss:
        high = of_loss.run_high()
        for arm in trained["arms"]:
            config, _ = read_options({"policy": Policy.from_toml(arm["policy"], name=arm["name"])}, None)
            effect = effect_of(of_loss.run(config, lambda *_: True), high)
            gap = statistics.fmean(arm[f"losses_from_{branch}"]) / statistics.fmean(high_losses) - 1
            validation = arm["validation_loss"] / trained["high"]["validation_loss"] - 1
            row = {"name": arm["name"], "loss": effect.loss, "gradient": effect.gradient}
            rows.append(row | {"gap": gap, "validation": validation})
            print(f"{arm['name']:30} loss {effect.loss:+.5f}, trained {100 * gap:+.2f} %", flush=True)
    result: dict[str, Any] = {"rows": rows, "batches": given.batches, "machine": machine()}
    for measured in ("loss", "gradient"):
        for of in ("gap", "validation"):
            rho = statistics.correlation(ranks([row[measured] for row in rows]), ranks([row[of] for row in rows]))
            result[f"{measured} against {of}"] = rho
            print(f"{measured} against {of}: rank correlation {rho:.3f} over {len(rows)} policies")
    (given.out / "ranking.json").write_text(json.dumps(result, indent=2) + "\n")


def ranks(values: list[float]) -> list[float]:
    """The place of each among all, from 0; Spearman's correlation is Pearson's of these."""
    order = sorted(values)
    return [float(order.index(value)) for value in values]


def start(settings: Settings, steps: int, text: corpus.Corpus, file: Path | None) -> torch.nn.Module:
    """The model after `steps` steps in full precision."""
    model = build(settings)
    if file is not None and file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model
    with torch.random.fork_rng(), deterministic("cpu"):
        trainer = Trainer(FULL_PRECISION, settings)
        for step in range(steps):
            tokens, targets = text.batch(seed=settings.seed, step=step, batch=settings.batch, context=settings.context)
            trainer.step(step, tokens, targets)
    if file is not None:
        torch.save(trainer.model.state_dict(), file)
    model.load_state_dict(trainer.model.state_dict())
    return model


if __name__ == "__main__":
    main()
