"""Latent attention's native kernels against the fusions' references in float64, in every build that this CPU can run."""

from __future__ import annotations

import native_calls
import pytest
import torch
from native_calls import DTYPES, One

from glmc.native.cache import Cache, Part
from glmc.native.calls import Form, Layout, State, Stride
from glmc.native.keep import Keep
from glmc.native.latent import opens
from glmc.passes import declare

LATENT, INDEXER = declare.load("latent_attention").reference, declare.load("lightning_indexer").reference
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "Q8": torch.bfloat16}


@pytest.fixture(autouse=True, params=native_calls.VARIANTS)
def variant(request, monkeypatch):
    monkeypatch.setenv("GLMC_ISA", request.param)


def drawn(*sizes: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(sizes, generator=torch.Generator().manual_seed(seed + sum(sizes)))


def step(*rows: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(sequences, positions) of new tokens: for each sequence its first position and how many."""
    return (torch.cat([torch.full((n,), i) for i, (_, n) in enumerate(rows)]),
            torch.cat([torch.arange(first, first + n) for first, n in rows]))


@pytest.mark.parametrize(("heads", "width", "lanes"), [(1, 4, 2), (5, 14, 3), (3, 66, 33)])
@pytest.mark.parametrize(("read", "write"), [(-1, -2), (-2, -2), (-1, -1)])
def test_heads_that_are_parts_of_rows_are_turned(heads, width, lanes, read, write):
    one, each = One(), width + 7
    x, cos, sin = drawn(6, heads * each), drawn(6, lanes, seed=1), drawn(6, lanes, seed=2)
    rows, cosines, sines, out = one.rows(x), one.rows(cos), one.rows(sin), one.room(heads * width)
    inside = type(rows)(rows.reg, 7, (heads - 1) * each + width)
    n = [heads, width, lanes, Stride(rows.reg), each, Stride(out.reg), Stride(cosines.reg), read, write]
    found = one.run("rope", n, [inside, cosines, sines, out])[out.reg].view(6, heads, width)
    exact = declare.load("rope").reference(x.view(6, heads, each)[..., 7:].double(), cos.double(), sin.double(), read=read,
                                           write=write)
    assert (found - exact).abs().max() < 1e-5


@pytest.mark.parametrize("width", [1, 14, 16, 47, 128])
@pytest.mark.parametrize("plain", [False, True])
def test_layer_norm(width, plain):
    one, x = One(), drawn(7, width) * 3 + 5
    weight, bias = drawn(width, seed=1), drawn(width, seed=2)
    rows, out = one.rows(x), one.room(width)
    given = [None, None] if plain else [one.weight(weight), one.weight(bias)]
    found = one.run("layer_norm", [width, Stride(rows.reg), Stride(out.reg)], [rows, *given, out], (1e-3,))[out.reg]
    scales = [None, None] if plain else [weight.double(), bias.double()]
    exact = torch.nn.functional.layer_norm(x.double(), (width,), *scales, 1e-3)
    assert (found - exact).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_go_to_their_slots_and_nowhere_else(dtype):
    one, (sequences, positions) = One(), step((5, 2), (33, 3))
    latent, turned = drawn(5, 12), drawn(5, 6, seed=1)
    cache = Cache(1, 2, 40, {"keys": Part(1, 18), "values": Part(1, 12, values=True)}, dtype)
    a, b = one.rows(latent), one.rows(turned)
    for rows, first, values in ((a, 0, True), (b, 12, False)):
        one.run("cache_rows", [rows.width, Stride(rows.reg), first, 18, Layout("form"), Layout("sequence")],
                [rows, State("keys", None), State("values", None) if values else None], positions=positions, cache=cache,
                sequences=sequences)
    keys, values = torch.zeros(2, 40, 1, 18), torch.zeros(2, 40, 1, 12)
    keys[sequences, positions, 0] = torch.cat((latent, turned), 1)
    values[sequences, positions, 0] = latent
    assert torch.equal(cache.take("keys", 40).float(), keys.to(dtype).float())
    assert torch.equal(cache.take("values", 40).float(), values.to(dtype).float())


def attention(rows, form, chosen=None, top=0, heads=3, plain=6, turned=4, rank=10, value=8, slots=310, threads=2, spoil=None,
              open_from=None):
    """(what the kernel makes, what the reference makes in float64) for new tokens [T, heads * value]."""
    one, (sequences, positions) = One(), step(*rows)
    count, dtype = len(positions), FLOATS[form]
    q = drawn(count, heads * (plain + turned))
    caches = {"latent": drawn(len(rows), slots, 1, rank, seed=1).to(dtype),
              "turned": drawn(len(rows), slots, 1, turned, seed=2).to(dtype)}
    if spoil:
        caches["latent"][spoil] = torch.nan
    parts = {"keys": Part(1, rank + turned), "values": Part(1, rank, values=True)}
    cache = Cache(1, len(rows), slots, parts, dtype)
    cache.fill(caches)
    matrix = drawn(heads * (plain + value), rank, seed=3) / rank ** 0.5
    keep = Keep(form, tuple(matrix.shape), "float32", split=(heads, plain, value))
    stored = torch.zeros(keep.stored()[1], dtype=DTYPES[keep.stored()[0]])
    keep.pack(matrix, stored)
    register, weight, out = one.rows(q), one.weight(stored, keep), one.room(heads * value)
    asked, turning = (type(register)(register.reg, at, (heads - 1) * (plain + turned) + width)
                      for at, width in ((0, plain), (plain, turned)))
    picked = None
    if chosen is not None:
        picked = one.rows(chosen.int().view(torch.float32))
    stride = [Stride(register.reg), plain + turned]
    n = [heads, plain, turned, rank, value, *stride, *stride, Stride(out.reg), Form(weight.name), Layout("form"),
         Layout("sequence"), Layout("slots"), top, Stride(picked.reg) if picked else 0,
         opens(plain, turned, rank, value) if open_from is None else open_from]
    p = [asked, turning, weight, State("keys", None), State("values", None), picked, out]
    found = one.run("latent_attention", n, p, (0.3,), threads=threads, positions=positions, cache=cache, sequences=sequences)
    exact = torch.empty(count, heads * value, dtype=torch.float64)
    split = q.view(count, heads, plain + turned).double()
    for t in range(count):
        lists = chosen[t] if chosen is not None and positions[t] >= top else torch.arange(int(positions[t]) + 1)
        given = (split[t, None, None, :, :plain], split[t, None, None, :, plain:],
                 *(c[sequences[t]][None, lists].double() for c in caches.values()))
        seen = torch.ones(1, 1, 1, len(lists), dtype=torch.bool)
        exact[t] = LATENT(*given, keep.plain(stored).double(), seen, scale=0.3).reshape(-1)
    return found[out.reg], exact


LIMITS = {"F32": 2e-5, "BF16": 0.03, "Q8": 0.06}


@pytest.mark.parametrize("form", LIMITS)
@pytest.mark.parametrize("rows", [((0, 1),), ((299, 1),), ((0, 5), (130, 3)), ((17, 1), (299, 1), (0, 1)), ((3, 40),),
                                  ((128, 70),)])
def test_closed_or_opened_it_is_the_reference(form, rows):
    for open_from in (0, 1, None):
        found, exact = attention(rows, form, open_from=open_from)
        assert (found - exact).abs().max() < LIMITS[form]


def test_wide_heads_and_many_of_them():
    for rows in (((200, 1),), ((0, 50), (90, 2))):
        for open_from in (0, 1):
            found, exact = attention(rows, "F32", heads=70, plain=34, turned=10, rank=66, value=50, open_from=open_from)
            assert (found - exact).abs().max() < 1e-4


@pytest.mark.parametrize("open_from", [0, 1])
def test_the_same_bits_on_one_thread_and_alone(open_from):
    rows = ((128, 45), (299, 1), (20, 3))
    whole, _ = attention(rows, "BF16", open_from=open_from)
    assert torch.equal(attention(rows, "BF16", threads=1, open_from=open_from)[0], whole)


def test_what_is_not_finite_is_not_hidden():
    for open_from in (0, 1):
        found, _ = attention(((100, 60),), "F32", spoil=(0, 130, 0, 3), open_from=open_from)
        assert found[:28].isfinite().all()
        assert not found[30:].isfinite().all(-1).any()


@pytest.mark.parametrize("top", [1, 6, 129])
@pytest.mark.parametrize("form", ["F32", "BF16"])
def test_chosen_slots_alone_are_seen(top, form):
    rows = ((top - 1, 1), (top, 4), (200, 33), (290, 1))
    _, positions = step(*rows)
    generator = torch.Generator().manual_seed(top)
    chosen = torch.stack([torch.randperm(int(p) + 1, generator=generator)[:top].sort().values if p >= top else
                          torch.zeros(top, dtype=torch.int64) for p in positions])
    found, exact = attention(rows, form, chosen, top, open_from=3)
    assert (found - exact).abs().max() < LIMITS[form]


def chosen_by(rows, top, dtype=torch.float32, heads=13, width=10, slots=300, keys=None, threads=2, scale=0.4):
    """(the kernel's choice, the reference's, positions)."""
    one, (sequences, positions) = One(), step(*rows)
    count = len(positions)
    query, shares = drawn(count, heads * width).to(dtype).float(), drawn(count, heads, seed=1)
    keys = (drawn(len(rows), slots, 1, width, seed=2) if keys is None else keys).to(dtype)
    cache = Cache(1, len(rows), slots, {"keys": Part(1, 2), "values": Part(1, 2, values=True), "index": Part(1, width)}, dtype)
    cache.put("index", keys)
    q, s, out = one.rows(query), one.rows(shares), one.room(top)
    n = [heads, width, Stride(q.reg), width, Stride(s.reg), Stride(out.reg), top, Layout("form"), Layout("sequence"),
         Layout("slots")]
    found = one.run("lightning_indexer", n, [q, s, State("index", None), out], (scale,), threads=threads, positions=positions,
                    cache=cache, sequences=sequences)[out.reg].view(torch.int32)
    seen = (torch.arange(slots) <= positions[:, None]).view(count, 1, 1, slots)
    exact = INDEXER(query.view(count, 1, heads, width).double(), keys[sequences].double(),
                    shares.view(count, 1, heads).double(), seen, scale=1.0, head_scale=scale, top=top)
    return found, exact.squeeze(1).sort(-1).values, positions


@pytest.mark.parametrize("top", [1, 7, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_best_slots_are_chosen_in_their_order(top, dtype):
    found, exact, positions = chosen_by(((0, 3), (40, 50), (299, 1), (top - 1, 3)), top, dtype)
    for mine, theirs, position in zip(found, exact, positions, strict=True):
        assert torch.equal(mine, theirs) if position >= top else mine.view(torch.float32).isnan().all()


def test_many_heads_over_several_pieces_of_a_long_context():
    found, exact, _ = chosen_by(((2500, 3),), 100, heads=32, width=64, slots=2600)
    assert torch.equal(found, exact)
    assert torch.equal(chosen_by(((2500, 3),), 100, heads=32, width=64, slots=2600, threads=1)[0], found)


def test_of_equal_scores_the_lower_slots_are_taken():
    found, _, _ = chosen_by(((20, 1),), 5, keys=torch.zeros(1, 300, 1, 10))
    assert found.tolist() == [[0, 1, 2, 3, 4]]


def test_a_key_that_is_not_finite_is_looked_at():
    keys = drawn(1, 300, 1, 10, seed=2)
    keys[0, 13] = torch.nan
    found, _, _ = chosen_by(((200, 1),), 3, keys=keys)
    assert 13 in found[0].tolist()
