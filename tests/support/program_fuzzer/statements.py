"""What the programs are made of: each function draws one statement, as source, from the values that there are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from program_fuzzer.draft import Draft

Maker = Callable[["Draft"], str]
STATEMENTS: dict[str, tuple[Maker, float]] = {}


def statement(weight: float = 1.0) -> Callable[[Maker], Maker]:
    def register(make: Maker) -> Maker:
        STATEMENTS[make.__name__] = make, weight
        return make

    return register


def scales(d: Draft, *, batches: bool = False) -> str:
    """alpha and beta. batches: eager baddbmm forgets beta where alpha is 0, in half precision on the CPU."""
    alphas = ["", "alpha=-2.0", "alpha=0.5", "alpha=3"]
    if not batches or d.dtype == "float32":
        alphas.append("alpha=0")
    given = d.choice(alphas), d.choice(["", "beta=2", "beta=-0.5", "beta=0"])
    return "".join(f", {scale}" for scale in given if scale)


def added(d: Draft, *shape: int) -> str:
    """A matrix, a row, a column or a number to add to [..., rows, columns]."""
    rows, columns = shape[-2:]
    form = d.choice([(columns,), (1, columns), (rows, 1), (), shape])
    like = d.value_of(shape) if d.chance(0.3) else None
    return like or d.parameter(*form)


@statement(2)
def linear(d: Draft) -> str:
    x, k, n = d.value(), d.last, d.size()
    bias = d.choice(["", f", {d.parameter(n)}"])
    return f"F.linear({x}, {d.weight(n, k)}{bias})"


@statement(2)
def linear_module(d: Draft) -> str:
    x, k, n = d.value(), d.last, d.size()
    return f"{d.module(f'nn.Linear({k}, {n}, bias={d.chance(0.5)})')}({x})"


@statement()
def mm(d: Draft) -> str:
    x = d.value(2)
    return f"torch.mm({x}, {d.weight(d.last, d.size())})"


@statement()
def weight_first(d: Draft) -> str:
    x = d.value(2)
    n = d.size()
    return f"torch.mm({d.weight(n, d.shape[0])}, {x})"


@statement()
def matmul(d: Draft) -> str:
    x = d.value()
    return f"{x} @ {d.weight(d.last, d.size())}"


@statement(0.7)
def functional(d: Draft) -> str:
    """By a weight that the caller passes."""
    x = d.value()
    w = d.argument(d.last, d.size())
    return d.choice([f"{x} @ {w}", f"F.linear({x}, {w}.t())", f"torch.einsum('...k,kn->...n', {x}, {w})"])


@statement()
def matmul_batches(d: Draft) -> str:
    x = d.value(3)
    leading = d.choice([(d.shape[0],), (2, 1), (1,)])
    return f"torch.matmul({x}, {d.weight(*leading, d.last, d.size())})"


@statement()
def matmul_vector(d: Draft) -> str:
    if d.chance(0.5):
        x = d.value(1)
        return f"{x} @ {d.weight(d.last, d.size())}"
    x = d.value(d.choice([2, 3]))
    return f"{x} @ {d.parameter(d.last)}"


@statement(2)
def addmm(d: Draft) -> str:
    x, n = d.value(2), d.size()
    m, k = d.shape
    return f"torch.addmm({added(d, m, n)}, {x}, {d.weight(k, n)}{scales(d)})"


@statement()
def addmm_in_place(d: Draft) -> str:
    x, n = d.value(2), d.size()
    m, k = d.shape
    start = d.value_of((m, n)) or d.parameter(m, n)
    return f"{start}.clone().addmm_({x}, {d.weight(k, n)}{scales(d)})"


@statement()
def bmm(d: Draft) -> str:
    x = d.value(3)
    return f"torch.bmm({x}, {d.weight(d.shape[0], d.last, d.size())})"


@statement()
def bmm_of_one(d: Draft) -> str:
    x = d.value(2)
    k, n = d.last, d.size()
    w = d.choice([f"{d.weight(k, n)}.unsqueeze(0)", f"{d.weight(k, n)}.expand(1, {k}, {n})", d.weight(1, k, n)])
    return f"torch.bmm({x}.unsqueeze(0), {w})"


@statement()
def baddbmm(d: Draft) -> str:
    x, n = d.value(3), d.size()
    b, m, k = d.shape
    return f"torch.baddbmm({added(d, b, m, n)}, {x}, {d.weight(b, k, n)}{scales(d, batches=True)})"


@statement()
def baddbmm_of_one(d: Draft) -> str:
    x, n = d.value(2), d.size()
    m, k = d.shape
    return f"torch.baddbmm({added(d, 1, m, n)}, {x}[None], {d.weight(1, k, n)}{scales(d, batches=True)})"


@statement()
def addbmm(d: Draft) -> str:
    x, n = d.value(3), d.size()
    b, m, k = d.shape
    return f"torch.addbmm({added(d, m, n)}, {x}, {d.weight(b, k, n)}{scales(d)})"


@statement(2)
def einsum(d: Draft) -> str:
    if d.chance(0.3):
        x = d.value(2)
        m, k = d.shape
        text, w = d.choice(
            [("mk,kn->nm", d.weight(k, 12)), ("mk,nk->mn", d.weight(9, k)), ("mk,mn->kn", d.weight(m, 7))]
        )
        return f"torch.einsum('{text}', {x}, {w})"
    x = d.value(3)
    b, s, k = d.shape
    text, w = d.choice(
        [
            ("bsh,hnd->bsnd", d.weight(k, 3, 8)),
            ("bsh,nh->bsn", d.weight(d.size(), k)),
            ("bsh,hn->nbs", d.weight(k, d.size())),
            ("bsh,bsn->hn", d.parameter(b, s, 6)),
            ("bsh,sn->bnh", d.weight(s, 11)),
            ("bsh,bhn->bsn", d.weight(b, k, 5)),
            ("bsh,snh->bsn", d.weight(s, 4, k)),
        ]
    )
    return f"torch.einsum('{text}', {x}, {w})"


@statement()
def tensordot(d: Draft) -> str:
    x = d.value(3)
    _, s, k = d.shape
    return d.choice(
        [
            f"torch.tensordot({x}, {d.weight(s, k, 7)}, 2)",
            f"torch.tensordot({x}, {d.weight(k, d.size())}, 1)",
            f"torch.tensordot({x}, {d.weight(9, s)}, dims=([1], [1]))",
        ]
    )


@statement()
def inner(d: Draft) -> str:
    x = d.value()
    return f"torch.inner({x}, {d.weight(d.size(), d.last)})"


@statement()
def multi_dot(d: Draft) -> str:
    x, between, n = d.value(2), d.size(), d.size()
    name = d.choice(["torch.linalg.multi_dot([", "torch.chain_matmul(*["])
    return f"{name}{x}, {d.weight(d.last, between)}, {d.weight(between, n)}])"


@statement(0.5)
def bilinear(d: Draft) -> str:
    x = d.value(2)
    k = d.last
    return f"F.bilinear({x}, torch.tanh({x}), {d.parameter(5, k, k)}, {d.parameter(5)})"


@statement(0.5)
def vectors(d: Draft) -> str:
    x = d.value(2)
    m, k = d.shape
    return d.choice(
        [
            f"torch.mv({x}, {d.parameter(k)})",
            f"torch.addmv({d.parameter(m)}, {x}, {d.parameter(k)}, alpha=-2, beta=3)",
            f"torch.addr({x}, {d.parameter(m)}, {d.parameter(k)}, alpha=-2, beta=3)",
            f"torch.outer({x}[:, 0], {d.parameter(d.size())})",
        ]
    )


@statement()
def activations(d: Draft) -> str:
    """A product of two activations that is none of attention."""
    x = d.value(d.choice([2, 3]))
    return d.choice([f"({x}).mT @ {x} / {d.shape[-2]}", f"{x} @ torch.tanh({x}).mT / {d.last}"])


@statement(0.7)
def attention(d: Draft) -> str:
    x = d.value(3)
    k, h = d.last, d.choice([4, 16])
    q = d.choice([f"{x} @ {d.weight(k, h)}", d.weight(3, h)])
    return f"torch.softmax({q} @ ({x} @ {d.weight(k, h)}).mT / {h**0.5:.1f}, -1) @ {x}"


@statement(0.5)
def fused_attention(d: Draft) -> str:
    x = d.value(3)
    w = [d.weight(d.last, 8) for _ in range(3)]
    heads = ", ".join(f"({x} @ {each})[:, None]" for each in w)
    return f"F.scaled_dot_product_attention({heads})[:, 0]"


@statement(0.7)
def experts(d: Draft) -> str:
    """Tokens past the last group are large: nothing may come of them. Their gradients are not defined, and dropped."""
    x = d.value(2)
    t, k = d.shape
    ends = sorted(d.choice([t, d.rng.randint(0, t)]) for _ in range(3))
    offs = d.attribute(f"nn.Buffer(torch.tensor({ends}, dtype=torch.int32))", "offs")
    k8, n8 = 8 * max(k // 8, 1), 8 * d.rng.randint(1, 4)
    padded = x if k == k8 else f"F.pad({x}, (0, {k8 - k}))"
    w = d.choice([d.parameter(3, k8, n8), f"{d.parameter(3, n8, k8)}.mT"])
    lines = [f"{{out}} = {padded}", f"inside = torch.arange({{out}}.shape[0])[:, None] < {offs}[-1]"]
    lines.append("{out} = torch.where(inside, {out}, 100.0).bfloat16()")
    return "\n".join(
        [*lines, f"{{out}} = torch._grouped_mm({{out}}, {w}.bfloat16(), offs={offs})[: {ends[-1]}].to({x}.dtype)"]
    )


@statement(0.7)
def recurrence(d: Draft) -> str:
    x = d.value(3)
    k, h = d.last, d.choice([5, 16, 20])
    steps = min(d.shape[1], 3)
    kind = d.choice(["RNNCell", "GRUCell", "LSTMCell"])
    cell = d.module(f"nn.{kind}({k}, {h})")
    first = "None" if kind == "LSTMCell" else f"{x}.new_zeros({x}.shape[0], {h})"
    read = "h[0]" if kind == "LSTMCell" else "h"
    lines = [f"h, seen = {first}, []", f"for i in range({steps}):", f"    h = {cell}({x}[:, i], h)"]
    return "\n".join([*lines, f"    seen.append({read})", "{out} = torch.stack(seen, 1)"])


@statement(0.7)
def tied(d: Draft) -> str:
    """One table as an embedding and as a head."""
    x = d.value(2)
    k = d.last
    table = d.parameter(20, k)
    tokens = d.attribute(f"nn.Buffer(torch.arange({d.shape[0]}) % 20)", "tokens")
    return f"({x} + F.embedding({tokens}, {table})) @ {table}.t()"


@statement(0.7)
def checkpointed(d: Draft) -> str:
    x = d.value()
    w = d.weight(d.last, d.size())
    # a reentrant one of an input that needs no gradient gives its weights none, eagerly
    reentrant = f"({x}).requires_grad" if d.chance(0.3) else "False"
    return f"checkpoint(lambda t: F.gelu(t @ {w}) * 2, {x}, use_reentrant={reentrant})"


@statement(0.7)
def autocast(d: Draft) -> str:
    x, n = d.value(), d.size()
    w = d.weight(n, d.last)
    lines = ['with torch.autocast("cpu", dtype=torch.bfloat16):', f"    {{out}} = F.linear({x}, {w}, {d.parameter(n)})"]
    return "\n".join([*lines, f"{{out}} = {{out}}.to({x}.dtype)"])


@statement(0.5)
def branch(d: Draft) -> str:
    x = d.value()
    w = d.weight(d.last, d.last)
    condition = d.choice([f"{x}.shape[0] > 3", f"{x}.sum() > 0"])
    return f"if {condition}:\n    {{out}} = {x} @ {w}\nelse:\n    {{out}} = -{x}"


@statement(0.4)
def graph_break(d: Draft) -> str:
    return f"torch._dynamo.graph_break()\n{{out}} = {d.value()} * 2"


@statement(0.7)
def residual(d: Draft) -> str:
    x = d.value()
    return f"{x} + torch.tanh({x} @ {d.weight(d.last, d.last)})"


@statement(0.7)
def in_place(d: Draft) -> str:
    x = d.value()
    change = d.choice(
        ["mul_(0.5)", "add_(1)", "relu_()", "sigmoid_()", "[..., :1].zero_()", f"add_({d.parameter(d.last)})"]
    )
    return f"{{out}} = {x}.clone()\n{{out}}{'' if change.startswith('[') else '.'}{change}"


@statement(0.5)
def joined(d: Draft) -> str:
    x = d.value()
    return d.choice(
        [f"torch.cat([{x}, {x} * 2], -1)", f"torch.stack([{x}, -{x}]).sum(0)", f"torch.where({x} > 0, {x}, 0.1)"]
    )


@statement(0.5)
def norm(d: Draft) -> str:
    x = d.value()
    return d.choice(
        [
            f"F.layer_norm({x}, ({d.last},), {d.parameter(d.last)})",
            f"{x} * torch.rsqrt({x}.square().mean(-1, True) + 1e-2)",
        ]
    )
