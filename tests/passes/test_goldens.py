# ruff: noqa: E501
"""The rewritten joint graph of one linear under each preset, to read."""

from __future__ import annotations

import re

import torch
from expecttest import TestCase
from graphs import capture_graphs
from torch import nn

import metis_compile

MAIN = {"residual", "quantize", "mm", "load", "store_", "keep_", "fresh_basis", "power_step"}


class One(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x)


def number_outputs(listing: str) -> str:
    """Versions of torch differ in how many outputs of eigh they name, used or not: those that are used count."""
    used = list(dict.fromkeys(re.findall(r"getitem_\d+", listing)))
    return re.sub(r"getitem_\d+", lambda found: f"getitem_{used.index(found[0])}", listing)


def test_every_preset_has_a_golden() -> None:
    assert {f"test_{name.replace('-', '_')}" for name in metis_compile.presets()} <= set(vars(Goldens))


class Goldens(TestCase):
    """The graph of one linear [16, 32] -> 32, under each preset. EXPECTTEST_ACCEPT=1 writes them anew.

    Of one [112, 128] -> 128 where a split keeps 1.5% of the directions: two.
    """

    maxDiff = None

    def golden(self, preset: str) -> str:
        torch.compiler.reset()
        tokens, width = (112, 128) if preset.startswith("metis") else (16, 32)
        x = torch.randn(tokens, width, requires_grad=True)
        return capture_graphs(One(width), x, policy=preset).graphs[0].listing()

    def main_steps(self, preset: str) -> str:
        """The golden without what is written out: fresh signs, folds, the adaptive rate."""
        lines = [line for line in self.golden(preset).splitlines() if line.split(" = ")[1].split("(")[0] in MAIN]
        return number_outputs("\n".join(lines))

    def test_high(self) -> None:
        self.assertExpectedInline(
            self.golden("high"),
            """\
permute = permute(primals_1, [1, 0])
mm = mm(primals_2, permute)
permute_1 = permute(tangents_1, [1, 0])
mm_1 = mm(permute_1, primals_2)
permute_2 = permute(mm_1, [1, 0])
permute_3 = permute(permute, [1, 0])
mm_2 = mm(tangents_1, permute_3)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_nvfp4(self) -> None:
        self.assertExpectedInline(
            self.golden("nvfp4"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_quantized = quantize(primals_2, nvfp4 1x16 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest, 1, 32)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 1x16 nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
up_activation_quantized_wgrad = quantize(primals_2, nvfp4 1x16 nearest, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up, 0, metis_seed, 1)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic round_up, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up, 1, metis_seed, 2)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic round_up, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, nvfp4 1x16 nearest, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_mxfp4(self) -> None:
        self.assertExpectedInline(
            self.golden("mxfp4"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_quantized = quantize(primals_2, mxfp4 1x32 nearest floor, 1)
up_activation_dequantized = dequantize(up_activation_quantized, mxfp4 1x32 nearest floor, 1, 32)
up_weight_quantized = quantize(primals_1, mxfp4 1x32 nearest floor, 1)
up_weight_dequantized = dequantize(up_weight_quantized, mxfp4 1x32 nearest floor, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
up_activation_quantized_wgrad = quantize(primals_2, mxfp4 1x32 nearest floor, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1, mxfp4 1x32 stochastic round_up floor, 0, metis_seed, 1)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, mxfp4 1x32 stochastic round_up floor, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, mxfp4 1x32 nearest floor, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, mxfp4 1x32 stochastic round_up floor, 1, metis_seed, 2)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, mxfp4 1x32 stochastic round_up floor, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, mxfp4 1x32 nearest floor, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, mxfp4 1x32 nearest floor, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_mxfp8(self) -> None:
        self.assertExpectedInline(
            self.golden("mxfp8"),
            """\
up_activation_quantized = quantize(primals_2, mxfp8 1x32 nearest floor, 1)
up_activation_dequantized = dequantize(up_activation_quantized, mxfp8 1x32 nearest floor, 1, 32)
up_weight_quantized = quantize(primals_1, mxfp8 1x32 nearest floor, 1)
up_weight_dequantized = dequantize(up_weight_quantized, mxfp8 1x32 nearest floor, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
up_activation_quantized_wgrad = quantize(primals_2, mxfp8 1x32 nearest floor, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1, mxfp8 1x32 nearest floor, 0)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, mxfp8 1x32 nearest floor, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, mxfp8 1x32 nearest floor, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, mxfp8 1x32 nearest floor, 1)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, mxfp8 1x32 nearest floor, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, mxfp8 1x32 nearest floor, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, mxfp8 1x32 nearest floor, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_fp8(self) -> None:
        self.assertExpectedInline(
            self.golden("fp8"),
            """\
up_activation_quantized = quantize(primals_2, fp8 tensor nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, fp8 tensor nearest, 1, 32)
up_weight_quantized = quantize(primals_1, fp8 tensor nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, fp8 tensor nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1, fp8_e5m2 tensor nearest, 0)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, fp8_e5m2 tensor nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized)
permute_2 = permute(mm_1, [1, 0])
mm_2 = mm(up_gradient_dequantized_wgrad, up_weight_dequantized)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_averis(self) -> None:
        self.assertExpectedInline(
            self.golden("averis"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_mean = mean(primals_2, [0], True)
up_activation_to_bfloat16 = to_bfloat16(up_activation_mean)
up_activation_convert_element_type = convert_element_type(up_activation_to_bfloat16, torch.float32)
up_activation_residual = residual(primals_2, up_activation_convert_element_type)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest, 1, 32)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 1x16 nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
permute_default = permute(primals_1, [1, 0])
mm_default = mm(up_activation_convert_element_type, permute_default)
up_activation_quantized_wgrad = quantize(up_activation_residual, nvfp4 1x16 nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
mm_with_tail = add(mm_float32, mm_default)
up_gradient_quantized_wgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up, 0, metis_seed, 2)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic round_up, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
permute_default_1 = permute(tangents_1, [1, 0])
sum_dim_int_list = sum(permute_default_1, [1], True)
mm_default_1 = mm(sum_dim_int_list, up_activation_convert_element_type)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
mm_1_with_tail = add(mm_1_float32, mm_default_1)
permute_2 = permute(mm_1_with_tail, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up, 1, metis_seed, 4)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic round_up, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, nvfp4 1x16 nearest, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_averis_paper(self) -> None:
        self.assertExpectedInline(
            self.golden("averis-paper"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_mean = mean(primals_2, [0], True)
up_activation_quantize = quantize(up_activation_mean, nvfp4 1x16 nearest, 1)
up_activation_dequantize = dequantize(up_activation_quantize, nvfp4 1x16 nearest, 1, 32)
up_activation_residual = residual(primals_2, up_activation_mean)
up_activation_full = full([16, 1], 1)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest, 1, 32)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 1x16 nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
permute_default = permute(up_weight_dequantized, [1, 0])
mm_default = mm(up_activation_dequantize, permute_default)
up_activation_quantized_wgrad = quantize(up_activation_residual, nvfp4 1x16 nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
mm_with_tail = add(mm_float32, mm_default)
up_gradient_mean = mean(tangents_1, [0], True)
up_gradient_quantize = quantize(up_gradient_mean, nvfp4 1x16 nearest, 1)
up_gradient_dequantize = dequantize(up_gradient_quantize, nvfp4 1x16 nearest, 1, 32)
up_gradient_residual = residual(tangents_1, up_gradient_mean)
up_gradient_quantized_wgrad = quantize(up_gradient_residual, nvfp4 1x16 stochastic none, 0, metis_seed, 3)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic none, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
permute_default_1 = permute(up_gradient_dequantize, [1, 0])
sum_dim_int_list = sum(up_activation_dequantized_wgrad, [0], True)
sum_dim_int_list_1 = sum(up_activation_full, [0], True)
mm_default_1 = mm(sum_dim_int_list_1, up_activation_dequantize)
add_tensor = add(sum_dim_int_list, mm_default_1)
mm_default_2 = mm(permute_default_1, add_tensor)
permute_default_3 = permute(up_gradient_dequantized_wgrad, [1, 0])
sum_dim_int_list_2 = sum(permute_default_3, [1], True)
mm_default_3 = mm(sum_dim_int_list_2, up_activation_dequantize)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
mm_1_with_tail = add(mm_1_float32, mm_default_2)
mm_1_with_tail_1 = add(mm_1_with_tail, mm_default_3)
permute_2 = permute(mm_1_with_tail_1, [1, 0])
up_gradient_quantized_dgrad = quantize(up_gradient_residual, nvfp4 1x16 stochastic none, 1, metis_seed, 6)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic none, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, nvfp4 1x16 nearest, 0, 32)
mm_default_4 = mm(up_gradient_dequantize, up_weight_dequantized_dgrad)
mm_2_float32 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
mm_2_with_tail = add(mm_2_float32, mm_default_4)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_four_over_six(self) -> None:
        self.assertExpectedInline(
            self.golden("four-over-six"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_quantized = quantize(primals_2, nvfp4 1x16 nearest 4/6-mse, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest 4/6-mse, 1, 32)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest 4/6-mse, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 1x16 nearest 4/6-mse, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
up_activation_quantized_wgrad = quantize(primals_2, nvfp4 1x16 nearest 4/6-mse, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up 4/6-expected, 0, metis_seed, 1)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic round_up 4/6-expected, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest 4/6-mse, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up 4/6-expected, 1, metis_seed, 2)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic round_up 4/6-expected, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest 4/6-mse, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, nvfp4 1x16 nearest 4/6-mse, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_nvidia(self) -> None:
        self.assertExpectedInline(
            self.golden("nvidia"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_quantized = quantize(primals_2, nvfp4 1x16 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest, 1, 32)
up_weight_quantized = quantize(primals_1, nvfp4 16x16 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 16x16 nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
primals_2_hadamard = hadamard(primals_2, 0)
up_activation_quantized_wgrad = quantize(primals_2_hadamard, nvfp4 1x16 nearest, 0)
mm = mm(up_activation_dequantized, permute_5)
tangents_1_hadamard = hadamard(tangents_1, 0)
up_gradient_quantized_wgrad = quantize(tangents_1_hadamard, nvfp4 1x16 stochastic 17/16, 0, metis_seed, 1)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic 17/16, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4 1x16 stochastic 17/16, 1, metis_seed, 2)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic 17/16, 1, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_metis(self) -> None:
        self.assertExpectedInline(
            self.golden("metis"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_kept = load(primals_3, up.weight, activation, [2, 128], cpu)
up_activation_slice_1 = slice(primals_2, 0, 0, 9223372036854775807, 9)
up_activation_power_step = power_step(up_activation_slice_1, up_activation_kept)
up_activation_permute = permute(up_activation_power_step, [1, 0])
up_activation_mm = mm(primals_2, up_activation_permute)
up_activation_to_bfloat16 = to_bfloat16(up_activation_power_step)
up_activation_convert_element_type = convert_element_type(up_activation_to_bfloat16, torch.float32)
up_activation_to_bfloat16_1 = to_bfloat16(up_activation_mm)
up_activation_convert_element_type_1 = convert_element_type(up_activation_to_bfloat16_1, torch.float32)
up_activation_residual = residual(primals_2, None, up_activation_convert_element_type_1, up_activation_convert_element_type)
store__default = store_(primals_3, up_activation_power_step, up.weight, activation)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest, 1, 128)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 1x16 nearest, 1, 128)
permute_5 = permute(up_weight_dequantized, [1, 0])
permute_default = permute(primals_1, [1, 0])
up_activation_dequantized_compensated_permute = permute(up_activation_convert_element_type, [1, 0])
up_activation_dequantized_compensated_mm = mm(up_activation_convert_element_type, up_activation_dequantized_compensated_permute)
up_activation_dequantized_compensated_addmm = addmm(up_activation_convert_element_type_1, up_activation_convert_element_type_1, up_activation_dequantized_compensated_mm)
up_activation_dequantized_compensated_addmm_1 = addmm(up_activation_dequantized_compensated_addmm, primals_2, up_activation_dequantized_compensated_permute)
up_activation_dequantized_compensated_addmm_2 = addmm(up_activation_dequantized_compensated_addmm_1, up_activation_dequantized, up_activation_dequantized_compensated_permute)
mm_default = mm(up_activation_convert_element_type, permute_default)
mm_default_1 = mm(up_activation_dequantized_compensated_addmm_2, mm_default)
up_activation_quantized_wgrad = quantize(up_activation_residual, nvfp4 1x16 nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
mm_with_tail = add(mm_float32, mm_default_1)
up_gradient_kept = load(primals_4, up.weight, gradient, [2, 128], cpu)
up_gradient_slice_1 = slice(tangents_1, 0, 0, 9223372036854775807, 9)
up_gradient_power_step = power_step(up_gradient_slice_1, up_gradient_kept)
up_gradient_permute = permute(up_gradient_power_step, [1, 0])
up_gradient_mm = mm(tangents_1, up_gradient_permute)
up_gradient_to_bfloat16 = to_bfloat16(up_gradient_power_step)
up_gradient_convert_element_type = convert_element_type(up_gradient_to_bfloat16, torch.float32)
up_gradient_to_bfloat16_1 = to_bfloat16(up_gradient_mm)
up_gradient_convert_element_type_1 = convert_element_type(up_gradient_to_bfloat16_1, torch.float32)
up_gradient_residual = residual(tangents_1, None, up_gradient_convert_element_type_1, up_gradient_convert_element_type)
store__default_1 = store_(primals_4, up_gradient_power_step, up.weight, gradient)
up_gradient_quantized_wgrad = quantize(up_gradient_residual, nvfp4 1x16 stochastic round_up, 0, metis_seed, 3)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic round_up, 0, 112)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest, 0, 112)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
permute_default_1 = permute(up_gradient_convert_element_type, [1, 0])
permute_default_2 = permute(up_gradient_convert_element_type_1, [1, 0])
mm_default_2 = mm(permute_default_2, up_activation_dequantized_wgrad)
mm_default_3 = mm(permute_default_2, up_activation_convert_element_type_1)
mm_default_4 = mm(mm_default_3, up_activation_convert_element_type)
add_tensor = add(mm_default_2, mm_default_4)
mm_default_5 = mm(permute_default_1, add_tensor)
permute_default_3 = permute(up_gradient_residual, [1, 0])
permute_default_4 = permute(up_activation_convert_element_type_1, [1, 0])
permute_default_5 = permute(permute_default_3, [1, 0])
mm_default_6 = mm(permute_default_4, permute_default_5)
permute_default_6 = permute(mm_default_6, [1, 0])
mm_default_7 = mm(permute_default_6, up_activation_convert_element_type)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
mm_1_with_tail = add(mm_1_float32, mm_default_5)
mm_1_with_tail_1 = add(mm_1_with_tail, mm_default_7)
permute_2 = permute(mm_1_with_tail_1, [1, 0])
up_gradient_quantized_dgrad = quantize(up_gradient_residual, nvfp4 1x16 stochastic round_up, 1, metis_seed, 6)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic round_up, 1, 128)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, nvfp4 1x16 nearest, 0, 128)
mm_default_8 = mm(up_gradient_convert_element_type, primals_1)
mm_default_9 = mm(up_gradient_convert_element_type_1, mm_default_8)
mm_2_float32 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
mm_2_with_tail = add(mm_2_float32, mm_default_9)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_metis_fp8(self) -> None:
        self.assertExpectedInline(
            self.golden("metis-fp8"),
            """\
up_activation_kept = load(primals_3, up.weight, activation, [16, 128], cpu)
up_activation_slice_1 = slice(primals_2, 0, 0, 9223372036854775807)
up_activation_power_step = power_step(up_activation_slice_1, up_activation_kept)
up_activation_permute = permute(up_activation_power_step, [1, 0])
up_activation_mm = mm(primals_2, up_activation_permute)
up_activation_to_bfloat16 = to_bfloat16(up_activation_power_step)
up_activation_convert_element_type = convert_element_type(up_activation_to_bfloat16, torch.float32)
up_activation_to_bfloat16_1 = to_bfloat16(up_activation_mm)
up_activation_convert_element_type_1 = convert_element_type(up_activation_to_bfloat16_1, torch.float32)
up_activation_residual = residual(primals_2, None, up_activation_convert_element_type_1, up_activation_convert_element_type)
store__default = store_(primals_3, up_activation_power_step, up.weight, activation)
up_activation_quantized = quantize(up_activation_residual, fp8 1x128 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, fp8 1x128 nearest, 1, 128)
up_weight_quantized = quantize(primals_1, fp8 128x128 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, fp8 128x128 nearest, 1, 128)
permute_5 = permute(up_weight_dequantized, [1, 0])
permute_default = permute(primals_1, [1, 0])
up_activation_dequantized_compensated_permute = permute(up_activation_convert_element_type, [1, 0])
up_activation_dequantized_compensated_mm = mm(up_activation_convert_element_type, up_activation_dequantized_compensated_permute)
up_activation_dequantized_compensated_addmm = addmm(up_activation_convert_element_type_1, up_activation_convert_element_type_1, up_activation_dequantized_compensated_mm)
up_activation_dequantized_compensated_addmm_1 = addmm(up_activation_dequantized_compensated_addmm, primals_2, up_activation_dequantized_compensated_permute)
up_activation_dequantized_compensated_addmm_2 = addmm(up_activation_dequantized_compensated_addmm_1, up_activation_dequantized, up_activation_dequantized_compensated_permute)
mm_default = mm(up_activation_convert_element_type, permute_default)
mm_default_1 = mm(up_activation_dequantized_compensated_addmm_2, mm_default)
up_activation_quantized_wgrad = quantize(up_activation_residual, fp8 1x128 nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
mm_with_tail = add(mm_float32, mm_default_1)
up_gradient_quantized_wgrad = quantize(tangents_1, fp8 1x128 nearest, 0)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, fp8 1x128 nearest, 0, 112)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, fp8 1x128 nearest, 0, 112)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
permute_default_1 = permute(tangents_1, [1, 0])
permute_default_2 = permute(up_activation_convert_element_type_1, [1, 0])
permute_default_3 = permute(permute_default_1, [1, 0])
mm_default_2 = mm(permute_default_2, permute_default_3)
permute_default_4 = permute(mm_default_2, [1, 0])
mm_default_3 = mm(permute_default_4, up_activation_convert_element_type)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
mm_1_with_tail = add(mm_1_float32, mm_default_3)
permute_2 = permute(mm_1_with_tail, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, fp8 1x128 nearest, 1)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, fp8 1x128 nearest, 1, 128)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_best(self) -> None:
        self.assertExpectedInline(
            self.golden("best"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_kept = load(primals_3, up.weight, activation, [16, 32], cpu)
up_activation_slice_1 = slice(primals_2, 0, 0, 9223372036854775807)
up_activation_power_step = power_step(up_activation_slice_1, up_activation_kept)
up_activation_permute = permute(up_activation_power_step, [1, 0])
up_activation_mm = mm(primals_2, up_activation_permute)
up_activation_to_bfloat16 = to_bfloat16(up_activation_power_step)
up_activation_convert_element_type = convert_element_type(up_activation_to_bfloat16, torch.float32)
up_activation_to_bfloat16_1 = to_bfloat16(up_activation_mm)
up_activation_convert_element_type_1 = convert_element_type(up_activation_to_bfloat16_1, torch.float32)
up_activation_residual = residual(primals_2, None, up_activation_convert_element_type_1, up_activation_convert_element_type)
store__default = store_(primals_3, up_activation_power_step, up.weight, activation)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 nearest 4/6-mse, 1)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4 1x16 nearest 4/6-mse, 1, 32)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest 4/6-mse, 1)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4 1x16 nearest 4/6-mse, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
permute_default = permute(primals_1, [1, 0])
up_activation_dequantized_compensated_permute = permute(up_activation_convert_element_type, [1, 0])
up_activation_dequantized_compensated_mm = mm(up_activation_convert_element_type, up_activation_dequantized_compensated_permute)
up_activation_dequantized_compensated_addmm = addmm(up_activation_convert_element_type_1, up_activation_convert_element_type_1, up_activation_dequantized_compensated_mm)
up_activation_dequantized_compensated_addmm_1 = addmm(up_activation_dequantized_compensated_addmm, primals_2, up_activation_dequantized_compensated_permute)
up_activation_dequantized_compensated_addmm_2 = addmm(up_activation_dequantized_compensated_addmm_1, up_activation_dequantized, up_activation_dequantized_compensated_permute)
mm_default = mm(up_activation_convert_element_type, permute_default)
mm_default_1 = mm(up_activation_dequantized_compensated_addmm_2, mm_default)
up_activation_quantized_wgrad = quantize(up_activation_residual, nvfp4 1x16 nearest 4/6-mse, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
mm_with_tail = add(mm_float32, mm_default_1)
up_gradient_quantized_wgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up, 0, metis_seed, 2)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4 1x16 stochastic round_up, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4 1x16 nearest 4/6-mse, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
permute_default_1 = permute(tangents_1, [1, 0])
permute_default_2 = permute(up_activation_convert_element_type_1, [1, 0])
permute_default_3 = permute(permute_default_1, [1, 0])
mm_default_2 = mm(permute_default_2, permute_default_3)
permute_default_4 = permute(mm_default_2, [1, 0])
mm_default_3 = mm(permute_default_4, up_activation_convert_element_type)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
mm_1_with_tail = add(mm_1_float32, mm_default_3)
permute_2 = permute(mm_1_with_tail, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4 1x16 stochastic round_up, 1, metis_seed, 4)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4 1x16 stochastic round_up, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest 4/6-mse, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, nvfp4 1x16 nearest 4/6-mse, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_averis_hadamard(self) -> None:
        self.assertExpectedInline(
            self.main_steps("averis-hadamard"),
            """\
up_activation_quantize = quantize(up_activation_mean, nvfp4 1x16 nearest, 1)
up_activation_residual = residual(primals_2, up_activation_mean)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 nearest, 1)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest, 1)
mm_default = mm(up_activation_dequantize, permute_default)
up_activation_quantized_wgrad = quantize(up_activation_residual_hadamard, nvfp4 1x16 nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
up_gradient_quantize = quantize(up_gradient_mean, nvfp4 1x16 nearest, 1)
up_gradient_residual = residual(tangents_1, up_gradient_mean)
up_gradient_quantized_wgrad = quantize(up_gradient_residual_hadamard, nvfp4 1x16 stochastic none, 0, metis_seed, 3)
mm_default_1 = mm(sum_dim_int_list_1, up_activation_dequantize)
mm_default_2 = mm(permute_default_1, add_tensor)
mm_default_3 = mm(sum_dim_int_list_2, up_activation_dequantize)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_quantized_dgrad = quantize(up_gradient_residual, nvfp4 1x16 stochastic none, 1, metis_seed, 6)
up_weight_quantized_dgrad = quantize(primals_1, nvfp4 1x16 nearest, 0)
mm_default_4 = mm(up_gradient_dequantize, up_weight_dequantized_dgrad)
mm_2_float32 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)""",
        )

    def test_metis_paper(self) -> None:
        self.assertExpectedInline(
            self.main_steps("metis-paper"),
            """\
up_activation_kept = load(primals_3, up.weight, activation, [2, 128], cpu)
up_activation_count = load(primals_3, up.weight, activation.steps, [1], cpu)
up_activation_fresh_basis = fresh_basis(primals_2, metis_seed_1, 0, 2, 0.01, 4, gaussian, 8, 0, up_activation_kept, up_activation_bitwise_or)
up_activation_mm = mm(primals_2, up_activation_permute)
up_activation_quantize = quantize(up_activation_fresh_basis, nvfp4 1x16 stochastic none, 1, metis_seed_1, 33554432)
up_activation_quantize_1 = quantize(up_activation_where_2, nvfp4 1x16 stochastic none, 1, metis_seed_1, 16777216)
up_activation_residual = residual(primals_2, None, up_activation_mm, up_activation_fresh_basis)
store__default = store_(primals_3, up_activation_fresh_basis, up.weight, activation)
store__default_1 = store_(primals_3, up_activation_where, up.weight, activation.steps)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 stochastic none, 1, metis_seed, 2)
up_weight_kept = load(primals_3, up.weight, weight, [2, 128], cpu)
up_weight_count = load(primals_3, up.weight, weight.steps, [1], cpu)
up_weight_fresh_basis = fresh_basis(primals_1, metis_seed_3, 0, 2, 0.01, 4, gaussian, 8, 0, up_weight_kept, up_weight_bitwise_or)
up_weight_mm = mm(primals_1, up_weight_permute)
up_weight_quantize = quantize(up_weight_fresh_basis, nvfp4 1x16 stochastic none, 1, metis_seed_3, 33554432)
up_weight_quantize_1 = quantize(up_weight_where_2, nvfp4 1x16 stochastic none, 1, metis_seed_3, 16777216)
up_weight_residual = residual(primals_1, None, up_weight_mm, up_weight_fresh_basis)
store__default_2 = store_(primals_3, up_weight_fresh_basis, up.weight, weight)
store__default_3 = store_(primals_3, up_weight_where, up.weight, weight.steps)
up_weight_quantized = quantize(up_weight_residual, nvfp4 1x16 stochastic none, 1, metis_seed, 4)
mm_default = mm(up_activation_dequantize, permute_default_2)
mm_default_1 = mm(up_activation_dequantize, permute_default)
mm_default_2 = mm(mm_default_1, permute_default_1)
mm_default_3 = mm(up_activation_mul_1, add_tensor)
mm_default_4 = mm(up_activation_dequantized, permute_default_3)
mm_default_5 = mm(mm_default_4, permute_default_4)
up_activation_mm_1 = mm(primals_2, up_activation_permute_1)
up_activation_quantize_2 = quantize(up_activation_fresh_basis, nvfp4 1x16 stochastic none, 0, metis_seed_7, 33554432)
up_activation_quantize_3 = quantize(up_activation_where_5, nvfp4 1x16 stochastic none, 0, metis_seed_7, 16777216)
up_activation_residual_1 = residual(primals_2, None, up_activation_mm_1, up_activation_fresh_basis)
up_activation_quantized_wgrad = quantize(up_activation_residual_1, nvfp4 1x16 stochastic none, 0, metis_seed, 8)
mm_float32 = mm(up_activation_dequantized, permute_5)
up_gradient_kept = load(primals_4, up.weight, gradient, [2, 128], cpu)
up_gradient_count = load(primals_4, up.weight, gradient.steps, [1], cpu)
up_gradient_fresh_basis = fresh_basis(tangents_1, metis_seed_5, 0, 2, 0.01, 4, gaussian, 8, 0, up_gradient_kept, up_gradient_bitwise_or)
up_gradient_mm = mm(tangents_1, up_gradient_permute)
up_gradient_quantize = quantize(up_gradient_fresh_basis, nvfp4 1x16 stochastic none, 0, metis_seed_5, 33554432)
up_gradient_quantize_1 = quantize(up_gradient_where_2, nvfp4 1x16 stochastic none, 0, metis_seed_5, 16777216)
up_gradient_residual = residual(tangents_1, None, up_gradient_mm, up_gradient_fresh_basis)
store__default_4 = store_(primals_4, up_gradient_fresh_basis, up.weight, gradient)
store__default_5 = store_(primals_4, up_gradient_where, up.weight, gradient.steps)
up_gradient_quantized_wgrad = quantize(up_gradient_residual, nvfp4 1x16 stochastic none, 0, metis_seed, 6)
mm_default_6 = mm(permute_default_6, up_activation_dequantized_wgrad)
mm_default_7 = mm(permute_default_6, up_activation_mul_3)
mm_default_8 = mm(mm_default_7, up_activation_dequantize_2)
mm_default_9 = mm(permute_default_5, add_tensor_1)
mm_default_10 = mm(permute_default_8, permute_default_9)
mm_default_11 = mm(permute_default_10, up_activation_dequantize_2)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_mm_1 = mm(tangents_1, up_gradient_permute_1)
up_gradient_quantize_2 = quantize(up_gradient_fresh_basis, nvfp4 1x16 stochastic none, 1, metis_seed_9, 33554432)
up_gradient_quantize_3 = quantize(up_gradient_where_5, nvfp4 1x16 stochastic none, 1, metis_seed_9, 16777216)
up_gradient_residual_1 = residual(tangents_1, None, up_gradient_mm_1, up_gradient_fresh_basis)
up_gradient_quantized_dgrad = quantize(up_gradient_residual_1, nvfp4 1x16 stochastic none, 1, metis_seed, 10)
up_weight_mm_1 = mm(primals_1, up_weight_permute_1)
up_weight_quantize_2 = quantize(up_weight_fresh_basis, nvfp4 1x16 stochastic none, 0, metis_seed_11, 33554432)
up_weight_quantize_3 = quantize(up_weight_where_5, nvfp4 1x16 stochastic none, 0, metis_seed_11, 16777216)
up_weight_residual_1 = residual(primals_1, None, up_weight_mm_1, up_weight_fresh_basis)
up_weight_quantized_dgrad = quantize(up_weight_residual_1, nvfp4 1x16 stochastic none, 0, metis_seed, 12)
mm_default_12 = mm(up_gradient_dequantize_2, up_weight_dequantized_dgrad)
mm_default_13 = mm(up_gradient_dequantize_2, up_weight_mul_3)
mm_default_14 = mm(mm_default_13, up_weight_dequantize_2)
mm_default_15 = mm(up_gradient_mul_3, add_tensor_2)
mm_default_16 = mm(up_gradient_dequantized_dgrad, up_weight_mul_3)
mm_default_17 = mm(mm_default_16, up_weight_dequantize_2)
mm_2_float32 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)""",
        )

    def test_metis_v1(self) -> None:
        self.assertExpectedInline(
            self.main_steps("metis-v1"),
            """\
up_activation_kept = load(primals_3, up.weight, activation, [2, 128], cpu)
up_activation_count = load(primals_3, up.weight, activation.steps, [1], cpu)
up_activation_fresh_basis = fresh_basis(primals_2, metis_seed_1, 0, 2, 0.01, 4, gaussian, 8, 0, up_activation_kept, up_activation_bitwise_or)
up_activation_mm = mm(primals_2, up_activation_permute)
up_activation_quantize = quantize(up_activation_fresh_basis, nvfp4 1x16 stochastic none, 1, metis_seed_1, 33554432)
up_activation_quantize_1 = quantize(up_activation_where_2, nvfp4 1x16 stochastic none, 1, metis_seed_1, 16777216)
up_activation_residual = residual(primals_2, None, up_activation_mm, up_activation_fresh_basis)
store__default = store_(primals_3, up_activation_fresh_basis, up.weight, activation)
store__default_1 = store_(primals_3, up_activation_where, up.weight, activation.steps)
up_activation_quantized = quantize(up_activation_residual, nvfp4 1x16 stochastic none, 1, metis_seed, 2)
up_weight_kept = load(primals_3, up.weight, weight, [2, 128], cpu)
up_weight_count = load(primals_3, up.weight, weight.steps, [1], cpu)
up_weight_fresh_basis = fresh_basis(primals_1, metis_seed_3, 0, 2, 0.01, 4, gaussian, 8, 0, up_weight_kept, up_weight_bitwise_or)
up_weight_mm = mm(primals_1, up_weight_permute)
up_weight_quantize = quantize(up_weight_fresh_basis, nvfp4 1x16 stochastic none, 1, metis_seed_3, 33554432)
up_weight_quantize_1 = quantize(up_weight_where_2, nvfp4 1x16 stochastic none, 1, metis_seed_3, 16777216)
up_weight_residual = residual(primals_1, None, up_weight_mm, up_weight_fresh_basis)
store__default_2 = store_(primals_3, up_weight_fresh_basis, up.weight, weight)
store__default_3 = store_(primals_3, up_weight_where, up.weight, weight.steps)
up_weight_quantized = quantize(up_weight_residual, nvfp4 1x16 stochastic none, 1, metis_seed, 4)
mm_default = mm(up_activation_dequantize, permute_default_2)
mm_default_1 = mm(up_activation_dequantize, permute_default)
mm_default_2 = mm(mm_default_1, permute_default_1)
mm_default_3 = mm(up_activation_mul_1, add_tensor)
mm_default_4 = mm(up_activation_dequantized, permute_default_3)
mm_default_5 = mm(mm_default_4, permute_default_4)
up_activation_mm_1 = mm(primals_2, up_activation_permute_1)
up_activation_quantize_2 = quantize(up_activation_fresh_basis, nvfp4 1x16 stochastic none, 0, metis_seed_7, 33554432)
up_activation_quantize_3 = quantize(up_activation_where_5, nvfp4 1x16 stochastic none, 0, metis_seed_7, 16777216)
up_activation_residual_1 = residual(primals_2, None, up_activation_mm_1, up_activation_fresh_basis)
up_activation_quantized_wgrad = quantize(up_activation_residual_1, nvfp4 1x16 stochastic none, 0, metis_seed, 8)
mm_float32 = mm(up_activation_dequantized, permute_5)
up_gradient_kept = load(primals_4, up.weight, gradient, [2, 128], cpu)
up_gradient_count = load(primals_4, up.weight, gradient.steps, [1], cpu)
up_gradient_fresh_basis = fresh_basis(tangents_1, metis_seed_5, 0, 2, 0.01, 4, gaussian, 8, 0, up_gradient_kept, up_gradient_bitwise_or)
up_gradient_mm = mm(tangents_1, up_gradient_permute)
up_gradient_quantize = quantize(up_gradient_fresh_basis, nvfp4 1x16 stochastic none, 0, metis_seed_5, 33554432)
up_gradient_quantize_1 = quantize(up_gradient_where_2, nvfp4 1x16 stochastic none, 0, metis_seed_5, 16777216)
up_gradient_residual = residual(tangents_1, None, up_gradient_mm, up_gradient_fresh_basis)
up_gradient_mm_1 = mm(up_gradient_convert_element_type_2, up_gradient_permute_1)
up_gradient_mm_2 = mm(up_gradient_permute_3, up_gradient_convert_element_type_1)
up_gradient_mm_3 = mm(up_gradient_permute_2, up_gradient_mm_2)
up_gradient_mm_4 = mm(up_gradient_mm_3, up_gradient_getitem_0)
up_gradient_mm_5 = mm(up_gradient_getitem_0, up_gradient_mul_4)
up_gradient_mm_6 = mm(up_gradient_permute_4, up_gradient_linalg_solve_triangular)
up_gradient_mm_7 = mm(up_gradient_mm_5, up_gradient_mm_6)
up_gradient_mm_8 = mm(up_gradient_mul_1, up_gradient_convert_element_type_3)
store__default_4 = store_(primals_4, up_gradient_fresh_basis, up.weight, gradient)
store__default_5 = store_(primals_4, up_gradient_where, up.weight, gradient.steps)
up_gradient_quantized_wgrad = quantize(up_gradient_mul_5, nvfp4 1x16 stochastic none, 0, metis_seed, 6)
mm_default_6 = mm(permute_default_6, up_activation_dequantized_wgrad)
mm_default_7 = mm(permute_default_6, up_activation_mul_3)
mm_default_8 = mm(mm_default_7, up_activation_dequantize_2)
mm_default_9 = mm(permute_default_5, add_tensor_1)
mm_default_10 = mm(permute_default_8, permute_default_9)
mm_default_11 = mm(permute_default_10, up_activation_dequantize_2)
mm_1_float32 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_mm_9 = mm(tangents_1, up_gradient_permute_5)
up_gradient_quantize_2 = quantize(up_gradient_fresh_basis, nvfp4 1x16 stochastic none, 1, metis_seed_9, 33554432)
up_gradient_quantize_3 = quantize(up_gradient_where_12, nvfp4 1x16 stochastic none, 1, metis_seed_9, 16777216)
up_gradient_residual_1 = residual(tangents_1, None, up_gradient_mm_9, up_gradient_fresh_basis)
up_gradient_mm_10 = mm(up_gradient_convert_element_type_6, up_gradient_permute_6)
up_gradient_mm_11 = mm(up_gradient_permute_8, up_gradient_convert_element_type_5)
up_gradient_mm_12 = mm(up_gradient_permute_7, up_gradient_mm_11)
up_gradient_mm_13 = mm(up_gradient_mm_12, up_gradient_getitem_1)
up_gradient_mm_14 = mm(up_gradient_getitem_1, up_gradient_mul_10)
up_gradient_mm_15 = mm(up_gradient_permute_9, up_gradient_linalg_solve_triangular_1)
up_gradient_mm_16 = mm(up_gradient_mm_14, up_gradient_mm_15)
up_gradient_mm_17 = mm(up_gradient_mul_7, up_gradient_convert_element_type_7)
up_gradient_quantized_dgrad = quantize(up_gradient_mul_11, nvfp4 1x16 stochastic none, 1, metis_seed, 10)
up_weight_mm_1 = mm(primals_1, up_weight_permute_1)
up_weight_quantize_2 = quantize(up_weight_fresh_basis, nvfp4 1x16 stochastic none, 0, metis_seed_11, 33554432)
up_weight_quantize_3 = quantize(up_weight_where_5, nvfp4 1x16 stochastic none, 0, metis_seed_11, 16777216)
up_weight_residual_1 = residual(primals_1, None, up_weight_mm_1, up_weight_fresh_basis)
up_weight_quantized_dgrad = quantize(up_weight_residual_1, nvfp4 1x16 stochastic none, 0, metis_seed, 12)
mm_default_12 = mm(up_gradient_dequantize_2, up_weight_dequantized_dgrad)
mm_default_13 = mm(up_gradient_dequantize_2, up_weight_mul_3)
mm_default_14 = mm(mm_default_13, up_weight_dequantize_2)
mm_default_15 = mm(up_gradient_mm_17, add_tensor_2)
mm_default_16 = mm(up_gradient_dequantized_dgrad, up_weight_mul_3)
mm_default_17 = mm(mm_default_16, up_weight_dequantize_2)
mm_2_float32 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)""",
        )

    def test_quartet2(self) -> None:
        self.assertExpectedInline(
            self.main_steps("quartet2"),
            """\
keep__default = keep_(metis_seed)
up_activation_quantized = quantize(primals_2, nvfp4 1x16 nearest 4/6-mse, 1)
up_weight_quantized = quantize(primals_1, nvfp4 1x16 nearest 4/6-mse, 1)
up_activation_quantized_wgrad = quantize(primals_2_hadamard, nvfp4 1x16 eden, 0, metis_seed, 2)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1_hadamard, nvfp4 1x16 eden, 0, metis_seed, 1)
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_quantized_dgrad = quantize(tangents_1_hadamard_1, nvfp4 1x16 eden, 1, metis_seed, 3)
up_weight_quantized_dgrad = quantize(primals_1_hadamard, nvfp4 1x16 eden, 0, metis_seed, 4)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)""",
        )

    def test_ufp4(self) -> None:
        self.assertExpectedInline(
            self.main_steps("ufp4"),
            """\
up_activation_quantized = quantize(primals_2_hadamard, ufp4 1x16 nearest, 1)
up_weight_quantized = quantize(primals_1_hadamard, ufp4 1x16 nearest, 1)
up_activation_quantized_wgrad = quantize(primals_2_hadamard_1, ufp4 1x16 nearest, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1_hadamard, ufp4 1x16 stochastic round_up, 0, metis_seed, 1)
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_quantized_dgrad = quantize(tangents_1_hadamard_1, ufp4 1x16 stochastic round_up, 1, metis_seed, 2)
up_weight_quantized_dgrad = quantize(primals_1_hadamard_1, ufp4 1x16 nearest, 0)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)""",
        )

    def test_ue5m3(self) -> None:
        self.assertExpectedInline(
            self.golden("ue5m3"),
            """\
metis_seed = randint(0, 9223372036854775807, [1])
up_activation_amax_kept = load(primals_3, up.weight, activation.amax, [2], cpu)
up_activation_amax_held = held_amax(primals_2, up_activation_amax_kept, 50)
store__default = store_(primals_3, up_activation_amax_next, up.weight, activation.amax)
up_activation_quantized = quantize(primals_2, nvfp4_ue5m3 1x16 nearest, 1, amax=up_activation_amax)
up_activation_dequantized = dequantize(up_activation_quantized, nvfp4_ue5m3 1x16 nearest, 1, 32)
up_weight_amax_kept = load(primals_3, up.weight, weight.amax, [2], cpu)
up_weight_amax_held = held_amax(primals_1, up_weight_amax_kept, 50)
store__default_1 = store_(primals_3, up_weight_amax_next, up.weight, weight.amax)
up_weight_quantized = quantize(primals_1, nvfp4_ue5m3 16x16 nearest, 1, amax=up_weight_amax)
up_weight_dequantized = dequantize(up_weight_quantized, nvfp4_ue5m3 16x16 nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
up_activation_quantized_wgrad = quantize(primals_2, nvfp4_ue5m3 1x16 nearest, 0, amax=up_activation_amax)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_amax_wgrad_kept = load(primals_4, up.weight, gradient.amax, [2], cpu)
up_gradient_amax_wgrad_held = held_amax(tangents_1, up_gradient_amax_wgrad_kept, 50)
store__default_2 = store_(primals_4, up_gradient_amax_wgrad_next, up.weight, gradient.amax)
up_gradient_quantized_wgrad = quantize(tangents_1, nvfp4_ue5m3 1x16 stochastic round_up, 0, metis_seed, 1, amax=up_gradient_amax_wgrad)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, nvfp4_ue5m3 1x16 stochastic round_up, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, nvfp4_ue5m3 1x16 nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4_ue5m3 1x16 stochastic round_up, 1, metis_seed, 2, amax=up_gradient_amax_wgrad)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, nvfp4_ue5m3 1x16 stochastic round_up, 1, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_mxfp4_hadamard(self) -> None:
        self.assertExpectedInline(
            self.main_steps("mxfp4-hadamard"),
            """\
up_activation_quantized = quantize(primals_2, mxfp4 1x32 nearest floor, 1)
up_weight_quantized = quantize(primals_1, mxfp4 1x32 nearest floor, 1)
up_activation_quantized_wgrad = quantize(primals_2_hadamard, mxfp4 1x32 nearest floor, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1_hadamard, mxfp4 1x32 nearest floor, 0)
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_quantized_dgrad = quantize(tangents_1, mxfp4 1x32 stochastic round_up floor, 1, metis_seed, 1)
up_weight_quantized_dgrad = quantize(primals_1, mxfp4 1x32 nearest floor, 0)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)""",
        )

    def test_dge_occ(self) -> None:
        self.assertExpectedInline(
            self.golden("dge-occ"),
            """\
up_activation_view = view(primals_2, [-1])
up_activation_kthvalue = kthvalue(up_activation_view, 6, -1, True)
up_activation_maximum = maximum(primals_2, up_activation_getitem)
up_activation_kthvalue_1 = kthvalue(up_activation_view, 507, -1, True)
up_activation_minimum = minimum(up_activation_maximum, up_activation_getitem_2)
up_activation_sub = sub(primals_2, up_activation_minimum)
up_activation_quantized = quantize(up_activation_minimum, fp4 row nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, fp4 row nearest, 1, 32)
up_weight_quantized = quantize(primals_1, fp4 row nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, fp4 row nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
permute_default = permute(primals_1, [1, 0])
mm_default = mm(up_activation_sub, permute_default)
up_activation_quantized_wgrad = quantize(primals_2, fp8 tensor nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
mm_with_tail = add(mm_float32, mm_default)
up_gradient_quantized_wgrad = quantize(tangents_1, fp8_e5m2 tensor nearest, 0)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, fp8_e5m2 tensor nearest, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, fp8 tensor nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
mm_1_estimated_abs_1 = abs(primals_1)
mm_1_estimated_amax = amax(mm_1_estimated_abs_1, [1], True)
mm_1_estimated_eq = eq(mm_1_estimated_amax, 0)
mm_1_estimated_full = full([32, 1], 6.0)
mm_1_estimated_div = div(mm_1_estimated_full, mm_1_estimated_amax)
mm_1_estimated_clamp_max = clamp_max(mm_1_estimated_div, 3.4028234663852886e+38)
mm_1_estimated_scalar_tensor = scalar_tensor(1.0)
mm_1_estimated_where = where(mm_1_estimated_eq, mm_1_estimated_scalar_tensor, mm_1_estimated_clamp_max)
mm_1_estimated_mul = mul(primals_1, mm_1_estimated_where)
mm_1_estimated_abs_2 = abs(mm_1_estimated_mul)
mm_1_estimated_clamp_max_1 = clamp_max(mm_1_estimated_abs_2, 6.0)
mm_1_estimated_lt = lt(mm_1_estimated_clamp_max_1, 2.0)
mm_1_estimated_lt_1 = lt(mm_1_estimated_clamp_max_1, 4.0)
mm_1_estimated_scalar_tensor_1 = scalar_tensor(16777216.0)
mm_1_estimated_scalar_tensor_2 = scalar_tensor(8388608.0)
mm_1_estimated_where_1 = where(mm_1_estimated_lt_1, mm_1_estimated_scalar_tensor_2, mm_1_estimated_scalar_tensor_1)
mm_1_estimated_scalar_tensor_3 = scalar_tensor(4194304.0)
mm_1_estimated_where_2 = where(mm_1_estimated_lt, mm_1_estimated_scalar_tensor_3, mm_1_estimated_where_1)
mm_1_estimated_mul_1 = mul(mm_1_estimated_where_2, 1.1920928955078125e-07)
mm_1_estimated_add = add(mm_1_estimated_clamp_max_1, mm_1_estimated_where_2)
mm_1_estimated_sub = sub(mm_1_estimated_add, mm_1_estimated_where_2)
mm_1_estimated_gt = gt(mm_1_estimated_sub, mm_1_estimated_clamp_max_1)
mm_1_estimated_sub_1 = sub(mm_1_estimated_sub, mm_1_estimated_mul_1)
mm_1_estimated_where_5 = where(mm_1_estimated_gt, mm_1_estimated_sub_1, mm_1_estimated_sub)
mm_1_estimated_sub_2 = sub(mm_1_estimated_clamp_max_1, mm_1_estimated_where_5)
mm_1_estimated_mul_2 = mul(mm_1_estimated_sub_2, 2)
mm_1_estimated_div_2 = div(mm_1_estimated_mul_2, mm_1_estimated_mul_1)
mm_1_estimated_sub_3 = sub(mm_1_estimated_div_2, 1)
mm_1_estimated_abs_3 = abs(mm_1_estimated_sub_3)
mm_1_estimated_pow_1 = pow(mm_1_estimated_abs_3, -0.8)
mm_1_estimated_div_3 = div(mm_1_estimated_pow_1, 5)
mm_1_estimated_clamp_max_2 = clamp_max(mm_1_estimated_div_3, 3.0)
mm_1_estimated_mul_3 = mul(mm_1, mm_1_estimated_clamp_max_2)
permute_2 = permute(mm_1_estimated_mul_3, [1, 0])
up_weight_quantized_dgrad = quantize(primals_1, fp8 tensor nearest, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, fp8 tensor nearest, 0, 32)
mm_2 = mm(up_gradient_dequantized_wgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )

    def test_chon(self) -> None:
        self.assertExpectedInline(
            self.main_steps("chon"),
            """\
up_activation_quantized = quantize(primals_2, nvfp4 1x16 nearest, 1)
up_weight_quantized = quantize(primals_1, nvfp4 16x16 nearest, 1)
up_weight_dequantized_compensated_mm = mm(up_weight_scatter, up_weight_dequantized_compensated_permute)
up_activation_dequantized_compensated_mm = mm(up_activation_scatter, up_activation_dequantized_compensated_permute)
mm_default = mm(up_activation_scatter, permute_default_2)
mm_default_1 = mm(up_activation_scatter, permute_default)
mm_default_2 = mm(mm_default_1, permute_default_1)
mm_default_3 = mm(up_activation_dequantized_compensated_addmm_2, add_tensor)
mm_default_4 = mm(up_activation_dequantized, permute_default_3)
mm_default_5 = mm(mm_default_4, permute_default_4)
up_activation_quantized_wgrad = quantize(primals_2_hadamard, nvfp4 1x16 nearest, 0)
mm_float32 = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1_hadamard, nvfp4 1x16 stochastic 17/16, 0, metis_seed, 3)
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
up_gradient_quantized_dgrad = quantize(tangents_1, nvfp4 1x16 stochastic 17/16, 1, metis_seed, 4)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized)""",
        )

    def test_fp4_ffn(self) -> None:
        self.assertExpectedInline(
            self.golden("fp4-ffn"),
            """\
up_activation_quantized = quantize(primals_2, fp4 1x128 nearest, 1)
up_activation_dequantized = dequantize(up_activation_quantized, fp4 1x128 nearest, 1, 32)
up_weight_quantized = quantize(primals_1, fp4 128x128 nearest, 1)
up_weight_dequantized = dequantize(up_weight_quantized, fp4 128x128 nearest, 1, 32)
permute_5 = permute(up_weight_dequantized, [1, 0])
up_activation_quantized_wgrad = quantize(primals_2, fp8 1x128 nearest, 0)
mm = mm(up_activation_dequantized, permute_5)
up_gradient_quantized_wgrad = quantize(tangents_1, fp8 1x128 nearest, 0)
up_gradient_dequantized_wgrad = dequantize(up_gradient_quantized_wgrad, fp8 1x128 nearest, 0, 16)
up_activation_dequantized_wgrad = dequantize(up_activation_quantized_wgrad, fp8 1x128 nearest, 0, 16)
permute_6 = permute(up_gradient_dequantized_wgrad, [1, 0])
mm_1 = mm(permute_6, up_activation_dequantized_wgrad)
permute_2 = permute(mm_1, [1, 0])
up_gradient_quantized_dgrad = quantize(tangents_1, fp8 1x128 nearest, 1)
up_gradient_dequantized_dgrad = dequantize(up_gradient_quantized_dgrad, fp8 1x128 nearest, 1, 32)
up_weight_quantized_dgrad = quantize(primals_1, fp8 128x128 nearest, 0)
up_weight_dequantized_dgrad = dequantize(up_weight_quantized_dgrad, fp8 128x128 nearest, 0, 32)
mm_2 = mm(up_gradient_dequantized_dgrad, up_weight_dequantized_dgrad)
permute_4 = permute(permute_2, [1, 0])""",
        )
