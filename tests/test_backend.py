"""`torch.compile(..., backend="glmc")` on stock transformers models: the AOT road's sites, eager's numbers, a ledger each.

Where Inductor itself is not the matter, the rewritten graph runs as it is (`plain`): compiling takes minutes.
"""

from __future__ import annotations

import functools

import models
import pytest
import torch
from compiled import INDUCTOR, Plain, apart, ids, stock

import glmc
from glmc import backend, dynamo
from glmc.errors import UsageError
from glmc.passes import declare

VARIANTS = {"glm": {"num_hidden_layers": 2}, "glm4": {"num_hidden_layers": 2}, "glm4_moe": {"num_hidden_layers": 2},
            "glm4_moe-no-qk-norm": {}}
DIFFERENT = {
    "attention": "stock models call torch's scaled_dot_product_attention on a cache that grows; the AOT road has slots",
}
"""Fusion -> why dynamo's graphs of a stock model have no site of what the AOT road proves."""


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def plain(monkeypatch):
    stand_in = Plain()
    monkeypatch.setattr(INDUCTOR, stand_in)
    return stand_in


@functools.cache
def planned(variant: str) -> dict[str, int]:
    """Fusion -> sites that the AOT road proves."""
    ledger = glmc.plan(models.published(variant, **VARIANTS[variant])[2]).ledger
    return {name: sum(row.proved.values()) for name, row in ledger.rows.items()}


@functools.cache
def seen(variant: str) -> tuple[list[backend.Graph], float]:
    """The graphs for one length, for the second length that dynamo meets, and with dynamic=True; the worst difference."""
    config, model = stock(variant, **VARIANTS[variant])
    differences, graphs = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(INDUCTOR, Plain())
        for dynamic in (None, True):
            compiled = torch.compile(model, backend="glmc", fullgraph=True, dynamic=dynamic)
            differences += [apart(compiled, model, ids(config, n)) for n in (7, 9, 12)]
            graphs += glmc.ledger_of(compiled).graphs
    return graphs, max(differences)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_graph_for_a_length_and_one_for_all_others(variant):
    graphs, worst = seen(variant)
    assert [bool(g.open_sizes) for g in graphs] == [False, True, True]
    assert [g.unfused for g in graphs] == [None] * 3
    assert worst < 1e-5


@pytest.mark.parametrize("fusion", declare.names())
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_sites_are_those_of_the_aot_road(variant, fusion):
    counts = [g.proved.get(fusion, 0) for g in seen(variant)[0]]
    wanted = 0 if fusion in DIFFERENT else planned(variant).get(fusion, 0)
    assert counts == [wanted] * 3, DIFFERENT.get(fusion)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_models_of_these_tests_have_sites(variant):
    assert planned(variant)["rms_norm"] > 4
    assert planned(variant)["silu_mul"] > 1


# Of a dense layer examples/torch_compile.py says the same, for one length and for all others.
@pytest.mark.parametrize("dynamic", [None, pytest.param(True, marks=pytest.mark.slow)])
def test_inductor_compiles_what_is_rewritten(dynamic):
    config, model = stock("glm4_moe", num_hidden_layers=1, first_k_dense_replace=1 if dynamic else 0)
    compiled = torch.compile(model, backend="glmc", fullgraph=True, dynamic=dynamic)
    assert apart(compiled, model, ids(config, 7)) < 1e-5
    ledger = glmc.ledger_of(compiled)
    assert [g.unfused for g in ledger.graphs] == [None]
    assert sum(row.taken for row in ledger.rows.values()) > 3
    assert f"graph 0/0: {ledger.graphs[0].steps} steps, {int(bool(dynamic))} open sizes, rewritten\n" in ledger.text()


def test_a_graph_that_inductor_sends_back_is_not_counted(monkeypatch):
    def sent_back(graph, inputs):
        raise ValueError("not this one")

    monkeypatch.setattr(INDUCTOR, sent_back)
    compiled = torch.compile(lambda x: torch.nn.functional.silu(x) * x, backend="glmc")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="not this one"):
        compiled(torch.randn(3))
    with pytest.raises(UsageError, match="nothing was compiled"):
        glmc.ledger_of(compiled)


def test_a_cache_that_grows(plain):
    config, model = stock("glm4_moe", **VARIANTS["glm4_moe"])
    compiled = torch.compile(model, backend="glmc", fullgraph=True)
    tokens = ids(config, 9)
    with torch.no_grad():
        whole = model(tokens).logits
        past, got = None, []
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 8), (8, 9)):
            out = compiled(tokens[:, start:end], past_key_values=past)
            past = out.past_key_values
            got.append(out.logits)
    assert (torch.cat(got, 1) - whole).abs().max() < 1e-5
    graphs = glmc.ledger_of(compiled).graphs
    assert len(graphs) <= 4
    assert {g.proved["rms_norm"] for g in graphs} == {planned("glm4_moe")["rms_norm"]}


def test_more_rows_and_a_mask(plain):
    config, model = stock("glm4_moe", num_hidden_layers=1)
    compiled = torch.compile(model, backend="glmc", fullgraph=True)
    tokens = ids(config, 6, rows=3)
    mask = torch.ones_like(tokens)
    mask[1, :2] = 0
    with torch.no_grad():
        both = [f(tokens, attention_mask=mask).logits[:, -1] for f in (compiled, model)]
    assert (both[0] - both[1]).abs().max() < 1e-5
    assert glmc.ledger_of(compiled).rows["rms_norm"].taken + glmc.ledger_of(compiled).rows["add_rms_norm"].taken > 2


def test_weights_stay_the_callers(plain):
    config, model = stock("glm4_moe", num_hidden_layers=1)
    compiled = torch.compile(model, backend="glmc", fullgraph=True)
    assert apart(compiled, model, ids(config, 7)) < 1e-5
    (graph,) = plain.graphs
    weights = [n for n in graph.graph.nodes if n.op == "placeholder"]
    cats = [n for n in graph.graph.nodes if n.target is torch.ops.aten.cat.default]
    assert not [n for n in cats if set(n.all_input_nodes) & set(weights)], "weights are copied at every call"
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    assert apart(compiled, model, ids(config, 7)) < 1e-5
    assert len(plain.graphs) == 1


def test_an_eps_that_changes_is_compiled_anew(plain):
    config, model = stock("glm", num_hidden_layers=1)
    compiled = torch.compile(model, backend="glmc", fullgraph=True, dynamic=True)
    assert apart(compiled, model, ids(config, 7)) < 1e-5
    model.model.norm.variance_epsilon = 0.5
    assert apart(compiled, model, ids(config, 7)) < 1e-5
    assert len(glmc.ledger_of(compiled).graphs) == 2


def test_a_float_that_the_caller_passes_stays_open(plain):
    def scaled(x, by):
        return torch.nn.functional.silu(x) * x * by

    compiled = torch.compile(scaled, backend="glmc", dynamic=True)
    x = torch.randn(3, 5)
    for by in (0.5, 0.25, 3.5):
        assert torch.allclose(compiled(x, by), scaled(x, by))
    ledger = glmc.ledger_of(compiled)
    assert len(ledger.graphs) == 1
    assert ledger.rows["silu_mul"].taken == 1


def test_each_compiled_object_has_its_own_ledger(plain):
    config, first = stock("glm", num_hidden_layers=1)
    _, second = stock("glm", num_hidden_layers=2)
    _, third = stock("glm", num_hidden_layers=2)
    compiled = [torch.compile(m, backend="glmc") for m in (first, second, third, third)]
    for one, model in zip(compiled, (first, second, third, third), strict=True):
        assert apart(one, model, ids(config, 7)) < 1e-5
    ledgers = [glmc.ledger_of(one) for one in compiled]
    assert [len(ledger.graphs) for ledger in ledgers] == [1, 1, 1, 1]
    assert [ledger.rows["silu_mul"].taken for ledger in ledgers] == [1, 2, 2, 2]
    assert list(ledgers[1].rows["silu_mul"].proved) == ["layers.0", "layers.1"]


def test_a_function_and_a_module_compiled_in_place_have_ledgers(plain):
    _, model = stock("glm", num_hidden_layers=1)
    mlp = model.model.layers[0].mlp
    x = torch.randn(1, 3, model.config.hidden_size)
    function = torch.compile(lambda x: mlp(x), backend="glmc")
    with torch.no_grad():
        wanted = mlp(x)
        assert torch.allclose(function(x), wanted, atol=1e-6)
        mlp.compile(backend="glmc")
        assert torch.allclose(mlp(x), wanted, atol=1e-6)
    for compiled in (function, mlp):
        assert glmc.ledger_of(compiled).rows["silu_mul"].taken == 1


def test_graph_breaks_are_told(plain):
    def broken(x):
        y = torch.nn.functional.silu(x) * x
        torch._dynamo.graph_break()
        return torch.nn.functional.silu(y) * y

    compiled = torch.compile(broken, backend="glmc")
    x = torch.randn(3, 5)
    assert torch.allclose(compiled(x), broken(x))
    ledger = glmc.ledger_of(compiled)
    assert [g.name for g in ledger.graphs] == ["0/0", "1/0"]
    assert [g.proved["silu_mul"] for g in ledger.graphs] == [1, 1]
    assert ledger.rows["silu_mul"].taken == 2
    assert sum(row["proved"] for row in ledger.to_json() if row["fusion"] == "silu_mul") == 2


def test_no_ledger_before_the_first_call_nor_for_anything_else():
    _, model = stock("glm", num_hidden_layers=1)
    for wrong, message in ((torch.compile(model, backend="glmc"), "nothing was compiled"),
                           (torch.compile(model, backend="eager"), "nothing was compiled"),
                           (model, "not an object"), (len, "not an object"), (lambda: 0, "not an object")):
        with pytest.raises(UsageError, match=message):
            glmc.ledger_of(wrong)


@pytest.mark.parametrize(("path", "wanted"), [
    ("L['self'].model.layers.0.mlp", "model.model.layers.0.mlp"),
    ("L['self']", "model"),
    ("L['self']._modules['model']._modules['layers']._modules['3']", "model.model.layers.3"),
    ("L['layer'].blocks[2].norm1", "model.blocks.2.norm1"),
    ("G['net'].layers.1", "G.net.layers.1"),
])
def test_paths_of_modules(path, wanted):
    assert dynamo.module_path(path) == wanted
