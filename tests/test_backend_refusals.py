"""What `torch.compile(..., backend="glmc")` leaves as it is or refuses: always by name, in a warning and in the ledger."""

from __future__ import annotations

import pytest
import torch
from compiled import INDUCTOR, Plain, apart, ids, stock

import glmc
from glmc import dynamo
from glmc.errors import UsageError


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


def reasons(compiled) -> set[str]:
    return {entry["reason"] for row in glmc.ledger_of(compiled).rows.values() for entry in row.refused}


def test_gradients_leave_the_graph_as_it_is(plain):
    config, model = stock("glm4_moe", num_hidden_layers=1)
    compiled = torch.compile(model, backend="glmc")
    tokens = ids(config, 7)
    with pytest.warns(UserWarning, match="gradients are recorded"):
        loss = compiled(tokens, labels=tokens).loss
    loss.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model(tokens, labels=tokens).loss.backward()
    assert got
    assert all(torch.allclose(got[n], p.grad, atol=1e-5) for n, p in model.named_parameters() if p.grad is not None)
    (graph,) = glmc.ledger_of(compiled).graphs
    assert "gradients are recorded" in graph.unfused
    assert graph.proved["rms_norm"] > 2
    assert graph.unfused in reasons(compiled)
    assert not any(row.taken for row in glmc.ledger_of(compiled).rows.values())
    assert apart(compiled, model, tokens) < 1e-5
    assert [g.unfused is None for g in glmc.ledger_of(compiled).graphs] == [False, True]


def test_training_mode_without_gradients_is_rewritten(plain):
    config, model = stock("glm", num_hidden_layers=1)
    model.train()
    compiled = torch.compile(model, backend="glmc")
    assert apart(compiled, model, ids(config, 7)) < 1e-5
    assert glmc.ledger_of(compiled).rows["silu_mul"].taken == 1


@pytest.mark.parametrize("outside", [True, False])
def test_autocast_leaves_the_graph_as_it_is(plain, outside):
    def gate(x):
        return torch.nn.functional.silu(x) * x

    def inside(x):
        with torch.autocast("cpu", torch.bfloat16):
            return torch.nn.functional.silu(x @ x) * x

    compiled = torch.compile(gate if outside else inside, backend="glmc")
    x = torch.randn(5, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=outside), pytest.warns(UserWarning, match="as it is"):
        assert torch.equal(compiled(x), (gate if outside else inside)(x))
    (graph,) = glmc.ledger_of(compiled).graphs
    assert "autocast" in graph.unfused
    assert not any(row.taken for row in glmc.ledger_of(compiled).rows.values())


def test_a_graph_inside_the_graph_is_named(plain):
    def chosen(x):
        return torch.cond(x.sum() > 0, lambda x: x * 2, lambda x: x * 3, (x,)) + torch.nn.functional.silu(x) * x

    compiled = torch.compile(chosen, backend="glmc", fullgraph=True)
    x = torch.randn(3, 5)
    with pytest.warns(UserWarning, match="of its own"):
        assert torch.allclose(compiled(x), chosen(x))
    assert "cond" in glmc.ledger_of(compiled).graphs[0].unfused


@pytest.mark.parametrize("wrong", [{"mode": "reduce-overhead"}, {"options": {"max_autotune": True}}])
def test_modes_and_options_are_refused(wrong):
    compiled = torch.compile(torch.nn.functional.silu, backend="glmc", **wrong)
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="takes no mode and no options") as caught:
        compiled(torch.randn(3))
    assert isinstance(caught.value.inner_exception, UsageError)


def test_other_devices_are_named():
    graph = torch.fx.symbolic_trace(lambda x: x + 1)
    assert "meta" in dynamo.unfit(graph, [torch.empty(2, device="meta")])
    assert dynamo.unfit(graph, [torch.empty(2)]) is None
    assert "TwoTensor" in dynamo.unreadable(graph, [type("TwoTensor", (torch.Tensor,), {})(torch.empty(2))])
