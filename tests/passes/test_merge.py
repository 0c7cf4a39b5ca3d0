"""Joined projections: one product with the parts' rows behind each other, and the way back."""

from __future__ import annotations

import pytest
import torch
import traced
from torch import fx, nn
from torch.nn import functional

from glmc.passes.merge import fold, joined_name, merge, undo
from glmc.passes.tidy import tidy
from glmc.trace import trace

LINEAR = torch.ops.aten.linear.default
X = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(3))


class Attention(nn.Module):
    """q, k and v of one source, and an output projection of another."""

    def __init__(self, names=("q_proj", "k_proj", "v_proj"), widths=(8, 4, 6), bias=(True, True, True), reads=(0, 0, 0)):
        super().__init__()
        self.names, self.reads = names, reads
        for name, width, biased in zip(names, widths, bias, strict=True):
            setattr(self, name, nn.Linear(12, width, bias=biased))
        self.o_proj = nn.Linear(sum(widths), 12)

    def forward(self, x):
        read = (x, x * 2)
        parts = [getattr(self, n)(read[r]) for n, r in zip(self.names, self.reads, strict=True)]
        return self.o_proj(torch.cat([p.sin() for p in parts], -1))


class Model(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"self_attn": Attention(**kwargs)}) for _ in range(2)])

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["self_attn"](x)
        return x


def traced_model(**kwargs):
    torch.manual_seed(5)
    model = Model(**kwargs).eval()
    made = trace(model, (X,), {"x": {1: torch.export.Dim("S", min=2, max=64)}})
    tidy(made.graph)
    return model, made


@torch.no_grad()
def run(made, weights, x=X):
    given = [weights[made.parameters[n.name]] if n.name in made.parameters else x
             for n in made.graph.find_nodes(op="placeholder")]
    return traced.everything(fx.Interpreter(nn.Module(), graph=made.graph).run(*given))[0]


def linears(made):
    return len(made.graph.find_nodes(op="call_function", target=LINEAR))


def text(graph):
    """The steps in words that the names of nodes do not matter to."""
    place = {n: f"%{i}" for i, n in enumerate(graph.nodes)}
    return [(n.op, str(n.target), fx.map_arg((n.args, n.kwargs), place.__getitem__), str(n.meta.get("val")))
            for n in graph.nodes]


@pytest.mark.parametrize("bias", [(True,) * 3, (False,) * 3])
def test_the_joined_product_keeps_the_numbers(bias):
    model, made = traced_model(bias=bias)
    wanted = model(X).detach()
    joined = merge(made)
    assert len(joined) == 2
    assert linears(made) == 4
    tidy(made.graph)
    weights = dict(model.state_dict())
    assert traced.worst(run(made, weights), wanted) <= 1e-6
    folded = fold(made, joined)
    kinds = ("weight", "bias") if bias[0] else ("weight",)
    assert list(folded.items()) == [(f"layers.{i}.self_attn.qkv_proj.{kind}",
                                     tuple(f"layers.{i}.self_attn.{p}_proj.{kind}" for p in "qkv"))
                                    for i in range(2) for kind in kinds]
    weights |= {name: torch.cat([weights[p] for p in parts]) for name, parts in folded.items()}
    assert not set(made.parameters[n.name] for n in made.graph.find_nodes(op="placeholder")
                   if n.name in made.parameters and n.users) & {p for parts in folded.values() for p in parts}
    assert traced.worst(run(made, weights), wanted) <= 1e-6
    longer = torch.randn(3, 11, 12)
    assert traced.worst(run(made, weights, longer), model(longer).detach()) <= 1e-6
    assert sum(n.target == torch.ops.aten.cat.default for n in made.graph.nodes) == 2, "only the model's own"
    made.graph.lint()


def test_what_is_undone_is_as_it_was():
    model, made = traced_model()
    before, numbers = text(made.graph), run(made, model.state_dict())
    joined = merge(made)
    assert text(made.graph) != before
    assert undo(made.graph, joined) == 2
    assert torch.equal(run(made, model.state_dict()), numbers)
    assert sorted(map(str, text(made.graph))) == sorted(map(str, before)) or linears(made) == 8
    assert not [n for n in made.graph.nodes if n.target == torch.ops.aten.slice.Tensor]


def test_a_product_that_somebody_reads_whole_is_not_undone():
    _, made = traced_model()
    joined = merge(made)
    output = made.graph.output_node()
    output.args = ((*output.args[0], joined[0].linear),)
    assert undo(made.graph, joined) == 1
    assert linears(made) == 6


def test_joining_twice_joins_nothing_more():
    _, made = traced_model()
    assert len(merge(made)) == 2
    before = text(made.graph)
    assert merge(made) == []
    assert text(made.graph) == before


@pytest.mark.parametrize(("kwargs", "count"), [
    ({"reads": (0, 0, 1)}, 2), ({"reads": (0, 1, 0)}, 2), ({"bias": (True, True, False)}, 2),
    ({"names": ("gate_proj", "up_proj"), "widths": (8, 8), "bias": (False, False), "reads": (0, 0)}, 2),
    ({"names": ("q_proj",), "widths": (8,), "bias": (True,), "reads": (0,)}, 0),
    ({"names": ("q_proj", "k_proj"), "widths": (8, 4), "bias": (True, False), "reads": (0, 0)}, 0),
])
def test_only_parts_that_fit_are_joined(kwargs, count):
    model, made = traced_model(**kwargs)
    wanted = run(made, model.state_dict())
    joined = merge(made)
    assert len(joined) == count
    assert all(len(j.parts) == 2 for j in joined)
    assert traced.worst(run(made, model.state_dict()), wanted) <= 1e-6


def test_dtypes_and_modules_are_not_mixed():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.ModuleDict({"q_proj": nn.Linear(12, 4, bias=False)})
            self.b = nn.ModuleDict({"q_proj": nn.Linear(12, 4, bias=False)})

        def forward(self, x):
            return self.a["q_proj"](x) + self.b["q_proj"](x)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Two()

        def forward(self, x):
            return self.inner(x)

    made = trace(Outer(), (X,))
    assert merge(made) == []


def test_the_order_of_parts_is_the_order_of_rows():
    model, made = traced_model()
    (first, _) = merge(made)
    weights = model.layers[0]["self_attn"]
    whole = torch.cat([weights.q_proj.weight, weights.k_proj.weight, weights.v_proj.weight])
    bias = torch.cat([weights.q_proj.bias, weights.k_proj.bias, weights.v_proj.bias])
    packed = functional.linear(X, whole, bias)
    starts = [(s.args[2], min(s.args[3], 18)) for s, _ in first.parts]
    assert starts == [(0, 8), (8, 12), (12, 18)]
    for (start, end), name in zip(starts, "qkv", strict=True):
        assert traced.worst(packed[..., start:end].detach(), getattr(weights, f"{name}_proj")(X).detach()) <= 1e-6


@pytest.mark.parametrize(("parts", "name"), [
    (("q_proj", "k_proj", "v_proj"), "qkv_proj"), (("gate_proj", "up_proj"), "gate_up_proj"),
    (("to_q", "to_k", "to_v"), "to_qkv"), (("q_a_proj", "kv_a_proj_with_mqa"), "fused_qkv_a_proj_with_mqa"),
    (("k_proj", "q_proj"), "k_proj_q_proj"),
])
def test_names_of_joined_parameters(parts, name):
    assert joined_name(tuple(f"layers.3.attn.{p}.weight" for p in parts)) == f"layers.3.attn.{name}.weight"
