"""A choice written as a file decides as the choice does, by few rules."""

from __future__ import annotations

import random

import pytest

from metis_compile import Policy
from metis_compile.calibration.candidates import OPERANDS_OF, Cells
from metis_compile.calibration.groups import Group, globs_of
from metis_compile.calibration.writing import rules_of, text_of
from metis_compile.policy import Query
from metis_compile.policy.depth import in_blocks

CELLS = frozenset((gemm, operand) for gemm, operands in OPERANDS_OF.items() for operand in operands)
NAMES = ("high", "mxfp8", "nvfp4", "best")
LAYERS = 8


def group(kind: str, blocks: str | None = None, cells: frozenset[tuple[str, str]] = CELLS) -> Group:
    modules = (kind.replace("*", str(i)) for i in range(LAYERS) if blocks is None or in_blocks(blocks, i, LAYERS))
    return Group(kind=kind, blocks=blocks, modules=frozenset(modules), cells=cells)


def between(kind: str) -> Group:
    return Group(kind=kind, blocks=None, modules=frozenset(kind.replace("*", str(i)) for i in range(2, 6)), cells=CELLS)


def everything(name: str, but: Cells | None = None) -> Cells:
    return dict.fromkeys(CELLS, name) | (dict(but) if but else {})


def decided(policy: Policy, module: str, gemm: str, operand: str, layer: int) -> str:
    query = Query(
        module=module,
        block=(layer, LAYERS),
        op="linear",
        gemm=gemm,
        operand=operand,
        dtype="float32",
        has_weight=True,
        m=64,
        n=64,
        k=64,
    )
    return policy.decide(query).recipe


def check(choice: dict[Group, Cells]) -> str:
    text = text_of(choice, ["A head."], lambda rule: ["Why."])
    policy = Policy.from_toml(text)
    for of, cells in choice.items():
        for module in of.modules:
            layer = int(next(part for part in module.split(".") if part.isdigit()))
            for gemm, operand in of.cells:
                assert decided(policy, module, gemm, operand, layer) == cells[gemm, operand], (module, gemm, operand)
    return text


def test_keys_apart_are_one_rule() -> None:
    q, k, up = (group(f"blocks.*.{name}") for name in ("attn.q", "attn.k", "mlp.up"))
    text = check(
        {q: everything("nvfp4"), k: everything("nvfp4", {("fprop", "activation"): "best"}), up: everything("nvfp4")}
    )
    assert text.count("[[rule]]") == 4
    assert 'module = "blocks.*.attn.k"\ngemm = "fprop"\noperand = "activation"\nrecipe = "best"' in text
    assert text.startswith("# A head.\n")


def test_rules_match_with_and_without_what_is_around_the_model() -> None:
    """A module that computes the loss holds the model that is calibrated, and is not there in training."""
    q, up = group("model.blocks.*.attn.q"), group("model.blocks.*.mlp.up")
    text = check({q: everything("best"), up: everything("nvfp4")})
    assert 'module = "*.blocks.' in text
    assert "model.blocks" not in text
    cells = ("blocks.1.attn.q", "fprop", "weight", 1)
    assert decided(Policy.from_toml(text), *cells) == "best"
    assert decided(Policy.from_toml(text), "blocks.1.mlp.up", *cells[1:]) == "nvfp4"


def test_a_product_of_all_layers_needs_no_module() -> None:
    both = {("fprop", "activation"): "mxfp8", ("fprop", "weight"): "mxfp8"}
    text = check({group("blocks.*.a"): everything("nvfp4", both), group("blocks.*.b"): everything("nvfp4", both)})
    assert 'gemm = "fprop"\nrecipe = "mxfp8"' in text
    assert "module" not in text


def test_a_layer_without_dgrad() -> None:
    first = group("stem.*", cells=CELLS - {("dgrad", "gradient"), ("dgrad", "weight")})
    cells = dict.fromkeys(first.cells, "best")
    text = check({first: cells, group("blocks.*.a"): everything("nvfp4")})
    assert 'module = "stem.*"\nrecipe = "best"' in text


def test_depths() -> None:
    ends = [group("blocks.*.a", "first 25%"), between("blocks.*.a"), group("blocks.*.a", "last 25%")]
    text = check(dict(zip(ends, (everything("best"), everything("nvfp4"), everything("nvfp4")), strict=True)))
    assert 'blocks = "first 25%"\nrecipe = "best"' in text
    assert "last" not in text
    check(dict(zip(ends, (everything("nvfp4"), everything("best"), everything("high")), strict=True)))


@pytest.mark.parametrize("seed", range(20))
def test_any_choice_is_written_as_it_is(seed: int) -> None:
    generator = random.Random(seed)
    kinds = ("blocks.*.a", "blocks.*.b", "blocks.*.c.d")
    groups = [g for kind in kinds for g in (group(kind, "first 25%"), between(kind), group(kind, "last 25%"))]
    check({g: {cell: generator.choice(NAMES) for cell in sorted(CELLS)} for g in generator.sample(groups, 7)})


def test_every_rule_says_what_it_decides() -> None:
    choice = {group("blocks.*.a"): everything("nvfp4"), group("blocks.*.b"): everything("high")}
    decided = [of for rule in rules_of(choice) for of in rule.decides]
    assert len(decided) == len(set(decided)) == 2 * len(CELLS)


def test_globs_that_would_match_others() -> None:
    def named(kind: str, *modules: str) -> Group:
        return Group(kind=kind, blocks=None, modules=frozenset(modules), cells=CELLS)

    assert globs_of([group("blocks.*.a"), group("blocks.*.b.a")]) == {
        "blocks.*.a": ("blocks.{0..7}.a",),
        "blocks.*.b.a": ("blocks.*.b.a",),
    }
    found = globs_of([named("*", "0", "2"), named("*.up", "4.up"), named("", "")])
    assert found == {"*": ("{0,2}",), "*.up": ("*.up",), "": ("",)}
    assert globs_of([named("a.*.*", "a.0.1", "a.1.0"), named("a.*.*.b", "a.0.0.b")])["a.*.*"] == ("a.0.1", "a.1.0")
