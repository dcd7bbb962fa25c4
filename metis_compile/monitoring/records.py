"""What a record holds: a plain dict, a line of JSON, of one operand or one product in one sampled step.

| key | of | what it is |
| --- | --- | --- |
| `step` | all | the number of the step, from 0: how many optimizer steps came before |
| `rank` | all | the process, 0 where there is one |
| `site` | all | the module's name in the model that is monitored, "" for the model itself |
| `op`, `gemm`, `call` | all | linear, matmul, ...; fprop, dgrad or wgrad; which of the module's products of this kind |
| `operand` | all | activation, weight or gradient, and product for the result |
| `side` | operands | left or right: which factor of the product it is |
| `format` | operands | the text of the quantizer's spec |
| `split`, `hadamard` | operands | the split and the Hadamard transform before it, or None |
| `amax`, ... | operands | the fields of `metis_compile.statistics.operand` |
| `what_if` | operands | for each other format asked for, the fields that depend on the format |
| `error` | products | the relative error of the product: `metis_compile.statistics.product` |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["KEY", "as_numbers", "in_order", "numbers_in"]

KEY = ("site", "op", "gemm", "call", "operand", "side", "rank")  # what tells one record of a step from another


_GEMMS = {"fprop": 0, "dgrad": 1, "wgrad": 2}


def in_order(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records of a step, those of a module beside each other, products behind their operands."""
    sites = {site: i for i, site in enumerate(dict.fromkeys((r["site"], r["op"]) for r in records))}

    def place(record: dict[str, Any]) -> tuple[Any, ...]:
        site = sites[record["site"], record["op"]]
        return site, record["call"], _GEMMS[record["gemm"]], record.get("side") or "~", record["operand"]

    return sorted(records, key=place)


def as_numbers(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records with every tensor in them as a float: one read from each device for all."""
    tensors = [value for record in records for value in _tensors(record)]
    by_device: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        by_device.setdefault(tensor.device, []).append(tensor.to(torch.float32))
    numbers = {device: iter(torch.stack(found).tolist()) for device, found in by_device.items()}
    return [_filled(record, numbers) for record in records]


def numbers_in(record: dict[str, Any]) -> dict[str, float]:
    """The statistics of a record by name, those of other formats as "what_if.mxfp8.error"."""
    found: dict[str, float] = {}
    for name, value in record.items():
        if name in ("step", "call", "rank"):
            continue
        if isinstance(value, dict):
            found |= {f"{name}.{inner}": number for inner, number in numbers_in(value).items()}
        elif isinstance(value, (int, float)):
            found[name] = float(value)
    return found


def _tensors(record: dict[str, Any]) -> Iterator[Tensor]:
    for value in record.values():
        if isinstance(value, dict):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value


def _filled(record: dict[str, Any], numbers: dict[torch.device, Iterator[float]]) -> dict[str, Any]:
    filled: dict[str, Any] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            filled[name] = _filled(value, numbers)
        else:
            filled[name] = next(numbers[value.device]) if isinstance(value, Tensor) else value
    return filled
