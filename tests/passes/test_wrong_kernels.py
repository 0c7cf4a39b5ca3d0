"""A kernel that is wrong in one place is refused by the numeric proof. Each function makes a wrong one of the right one."""

from __future__ import annotations

import pytest
import torch
from proving import CPU, captured

from glmc import kernels
from glmc.errors import NumericError
from glmc.passes import declare, hostile
from glmc.passes.prove import prove


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch):
    """Most tests do with 2,048 rows for 65,536."""
    monkeypatch.setattr(hostile, "_ROWS", 2048)


def scaled(right):
    def run(*args, **scalars):
        made = right(*args, **scalars)
        if not isinstance(made, tuple):
            return made * (1 + 1e-4)
        return tuple(m * (1 + 1e-4) if m.is_floating_point() and all(m is not a for a in args) else m for m in made)

    return run


def poisoned(right):
    def run(*args, **scalars):
        made = right(*args, **scalars)
        first = made[0] if isinstance(made, tuple) else made
        first.view(-1)[-1] = float("nan")
        return made

    return run


def at_last_of_many(right):
    """Wrong in one row behind the 1,000th that is neither among the first nor the last."""
    def run(*args, **scalars):
        made = right(*args, **scalars)
        first = made[0] if isinstance(made, tuple) else made
        rows = first.shape[:-1].numel()
        if rows > 1000:
            first[torch.unravel_index(torch.tensor(rows // 2), first.shape[:-1])] *= 1.001
        return made

    return run


def with_scalar(name, change):
    return lambda right: lambda *args, **scalars: right(*args, **{**scalars, name: change(scalars[name])})


def with_argument(number, change):
    return lambda right: lambda *args, **scalars: right(
        *args[:number], change(*args) if args[number] is not None else None, *args[number + 1:], **scalars)


def swapped(a, b):
    def wrong(right):
        def run(*args, **scalars):
            args = list(args)
            args[a], args[b] = args[b], args[a]
            return right(*args, **scalars)

        return run

    return wrong


def where(condition, number=0):
    """Wrong only where the tensor `number` holds such a value."""
    def wrong(right):
        def run(*args, **scalars):
            made = right(*args, **scalars)
            first = made[0] if isinstance(made, tuple) else made
            if bool(condition(args[number]).any()):
                first.mul_(1.01)
            return made

        return run

    return wrong


def one(size):
    return torch.tensor(size == 1)


def as_is(right):
    """The cache comes back written, but it is another one."""
    def run(*args, **scalars):
        return right(*args[:7], *(None if a is None else a.clone() for a in args[7:9]), *args[9:], **scalars)

    return run


def spoils(right):
    def run(x, *args, **scalars):
        made = right(x, *args, **scalars)
        x.view(-1)[0] += 1
        return made

    return run


def in_double(right):
    return lambda *args, **scalars: right(*args, **scalars).double()


def flipped(x):
    return -3 - x


def shifted(lanes):
    return lambda *args: torch.cat([args[lanes][..., 1:], args[lanes][..., :1]], -1)


def widened_lane(right):
    """One lane less is turned."""
    return lambda x, cos, sin, **s: right(x, cos[..., :-1], sin[..., :-1], **s)


def overflowing(right):
    return lambda gate, up: gate * up * (gate.exp() / (1 + gate.exp()))


def narrow_square(right):
    """Squares leave the dtype earlier than the published ones do."""
    return lambda x, weight, *, eps: x / ((1e4 * x * x).sum(-1, keepdim=True) / 1e4 / x.shape[-1] + eps).sqrt() * weight


def unmasked(right):
    return lambda q, k, v, visible, *, scale: right(q, k, v, torch.ones_like(visible), scale=scale)


def biased_weights(right):
    def run(logits, bias, **scalars):
        weights, experts = right(logits, bias, **scalars)
        return weights + 1e-3 * bias[experts], experts

    return run


def wrong_experts(right):
    def run(logits, bias, **scalars):
        weights, experts = right(logits, bias, **scalars)
        return weights, (experts + (logits.shape[0] > 1)) % logits.shape[1]

    return run


def gate_behind_up(right):
    return lambda x, e, w, gate_up, down: right(x, e, w, torch.cat(gate_up.chunk(2, 1)[::-1], 1), down)


WRONG = {
    "scaled": [(name, 0, scaled) for name in declare.names()],
    "a NaN": [(name, 0, poisoned) for name in declare.names() if name != "lightning_indexer"],
    "a row of many": [(name, 6 if name == "split_qkv_norm_rope" else 0, at_last_of_many) for name in declare.names()
                      if name not in ("moe_experts", "lightning_indexer")],
    "eps": [(name, 0, with_scalar("eps", lambda e: e + 1e-4)) for name in ("rms_norm", "add_rms_norm", "qk_norm_rope")],
    "pairing": [(name, pair, with_scalar(which, flipped)) for name, pair in
                (("rope", 0), ("rope", 2), ("qk_norm_rope", 0), ("split_qkv_norm_rope", 0), ("split_qkv_norm_rope", 8))
                for which in ("read", "write")],
    "lanes": [("rope", 0, with_argument(1, shifted(1))), ("qk_norm_rope", 0, with_argument(3, shifted(3))),
              ("rope", 0, widened_lane), ("rope", 0, swapped(1, 2)), ("rope", 0, with_argument(2, lambda *a: -a[2])),
              ("split_qkv_norm_rope", 0, with_argument(2, shifted(2)))],
    "positions": [("rope_table", 0, with_argument(0, lambda *a: a[0] + 1)),
                  ("rope_table", 0, with_argument(0, lambda *a: a[0].clamp(max=131_071))),
                  ("rope_table", 0, with_argument(0, lambda *a: a[0].to(torch.bfloat16))),
                  ("rope_table", 0, where(lambda p: p > 500_000)),
                  ("rope_table", 4, with_argument(0, lambda *a: a[0].flip(-1))),
                  ("rope_table", 0, with_scalar("scale", lambda s: 1.0)),
                  ("rope_table", 2, with_scalar("axis_map", lambda m: tuple((a + 1) % 3 for a in m))),
                  ("split_qkv_norm_rope", 16, with_scalar("axis_map", lambda m: m[1:] + m[:1]))],
    "values": [("silu_mul", 0, swapped(0, 1)), ("silu_mul", 0, overflowing), ("rms_norm", 0, narrow_square),
               ("silu_mul", 0, where(lambda x: x.abs() > 2.0 ** 39)), ("rms_norm", 0, where(lambda x: x.abs() > 2.0 ** 39)),
               ("rms_norm", 0, where(lambda x: (x != 0) & (x.abs() < 2.0 ** -126))),
               ("add_rms_norm", 0, with_argument(1, lambda *a: a[1] * 1.001)),
               ("layer_norm", 0, with_argument(2, lambda *a: 0 * a[2])),
               ("layer_norm", 2, with_scalar("eps", lambda e: e + 1e-3))],
    "one token": [("attention", 0, where(lambda q: one(q.shape[2]))), ("rms_norm", 0, where(lambda x: one(x.shape[1]))),
                  ("split_qkv_norm_rope", 0, where(lambda x: one(x.shape[1]))),
                  ("silu_mul", 0, where(lambda x: one(x.shape[0] * x.shape[1])))],
    "attention": [("attention", 0, unmasked), ("attention", 0, with_scalar("scale", lambda s: s * 1.01)),
                  ("attention", 0, with_argument(1, lambda *a: a[1].roll(1, 1)))],
    "latents": [("latent_attention", 0, with_argument(5, lambda *a: torch.ones_like(a[5]))),
                ("latent_attention", 0, with_scalar("scale", lambda s: s * 1.01)),
                ("latent_attention", 0, with_argument(3, lambda *a: a[3].roll(1, 1))),
                ("latent_attention", 0, with_argument(4, lambda *a: a[4].roll(1, 0))),
                ("latent_attention", 0, where(lambda q: one(q.shape[1]))),
                ("latent_attention", 0, where(lambda q: torch.tensor(q.shape[1] != 1))),
                ("latent_attention", 2, with_argument(6, lambda *a: None)),
                ("latent_attention", 2, with_argument(6, lambda *a: (a[6] + 1) % a[2].shape[1]))],
    "slots": [("lightning_indexer", 0, with_argument(2, lambda *a: -a[2])),
              ("lightning_indexer", 0, with_argument(2, lambda *a: a[2].roll(1, -1))),
              ("lightning_indexer", 0, with_argument(3, lambda *a: torch.ones_like(a[3]))),
              ("lightning_indexer", 0, with_argument(1, lambda *a: a[1].roll(1, 1)))],
    "experts": [("moe_route", 0, biased_weights), ("moe_route", 0, wrong_experts), ("moe_experts", 0, gate_behind_up),
                ("moe_route", 0, with_scalar("normalise", lambda n: not n)),
                ("moe_route", 0, with_scalar("scale", lambda s: 1.0)),
                ("moe_route", 0, with_scalar("kept", lambda n: n + 1)), ("moe_route", 0, with_argument(1, lambda *a: 0 * a[1])),
                ("moe_experts", 0, with_argument(1, lambda *a: a[1].roll(1, -1))),
                ("moe_experts", 0, with_argument(2, lambda *a: torch.ones_like(a[2])))],
    "cache": [("split_qkv_norm_rope", 0, as_is), ("split_qkv_norm_rope", 2, with_argument(9, lambda *a: a[9].roll(1, -1))),
              ("split_qkv_norm_rope", 2, swapped(3, 4)), ("split_qkv_norm_rope", 2, swapped(7, 8)),
              ("split_qkv_norm_rope", 10, with_argument(5, lambda *a: 0 * a[5]))],
    "inputs": [("rms_norm", 0, spoils), ("silu_mul", 0, spoils), ("split_qkv_norm_rope", 6, spoils)],
    "dtype": [("silu_mul", 0, in_double), ("rms_norm", 0, in_double)],
}


@pytest.mark.parametrize(("kind", "number"), [(kind, i) for kind, all_ in WRONG.items() for i in range(len(all_))])
def test_a_kernel_wrong_in_one_place_is_refused(monkeypatch, kind, number):
    name, pair, wrong = WRONG[kind][number]
    sites, module = captured(name, pair), kernels.load(name, "cpu")
    monkeypatch.setattr(module, "run", wrong(module.run))
    with pytest.raises(NumericError, match=f"kernel of {name}"):
        prove(sites, CPU)
