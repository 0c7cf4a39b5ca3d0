"""Tokens from rows of logits: repetition penalty, temperature, top-k, top-p, and a draw by the inverse cumulative distribution.

Nothing is sorted. A row of V values is cut into parts of SHARE, a program each, which walk it in chunks. What top-k, top-p and
the draw look for is the first value, in ascending order and of equal ones by position, up to which there is more than a target:
of values, or of their mass. Programs sum count and mass in bins by size; those in the bins that can hold the answer are
gathered in order of position; one program a row then halves the range of their bits until one value is left, and counts among
its equals.

float32 values, float64 masses. Every sum has one order, so the same logits and uniform number always give the same token.
"""

from __future__ import annotations

import ctypes

import torch
import triton
import triton.language as tl

from glmc.kernels.triton import blocks, launch, power, rows_of

PARTS, CHUNK, TILE = 64, 1024, 256
"""The most parts of a row; values that a program looks at together; values that it puts into bins together."""
BINS = 32
"""Bin 0 holds weights that top-p drops for certain."""
LIST = 2048
"""Gathered values that a program looks at together."""
LOG2E = tl.constexpr(1.4426950408889634)


def accepts(site) -> str | None:
    return None


@triton.jit
def peak(x):
    """The greatest of x; NaN if any is."""
    broken = tl.max((x != x).to(tl.int32), axis=0)
    return tl.where(broken > 0, float("nan"), tl.max(tl.where(x == x, x, float("-inf")), axis=0))


@triton.jit
def joined(peaks, row, which: tl.constexpr, other: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr):
    """One figure of every part of a row, [LANES]. which: 0 the greatest logit, 1 the greatest score, 2 the least finite one."""
    lane = tl.arange(0, LANES)
    return tl.load(peaks + (row * 3 + which) * PARTS + lane, mask=lane < PARTS, other=other)


@triton.jit
def score_kernel(logits, seen, scores, peaks, indices, penalty, temperature, STRIDE: tl.constexpr, V: tl.constexpr,
                 SHARE: tl.constexpr, PARTS: tl.constexpr, CHUNK: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    index = part * SHARE + tl.arange(0, CHUNK)
    at = index
    high, best = tl.full((CHUNK,), float("-inf"), tl.float32), tl.full((CHUNK,), float("-inf"), tl.float32)
    low = tl.full((CHUNK,), float("inf"), tl.float32)
    for _ in range(0, SHARE, CHUNK):
        x = tl.load(logits + row * STRIDE + at, mask=at < V, other=float("-inf")).to(tl.float32)
        high = tl.where((x > high) | (x != x), x, high)
        if seen is not None:
            marked = tl.load(seen + row * V + at, mask=at < V, other=0) != 0
            x = tl.where(marked, tl.where(x < 0, x * penalty, tl.math.div_rn(x, penalty)), x)
        if scores is not None:
            x = tl.where(at < V, tl.math.div_rn(x, temperature), float("-inf"))
            tl.store(scores + row * V + at, x, mask=at < V)
            low = tl.minimum(low, tl.where(x > float("-inf"), x, float("inf")))
        better = (x > best) | (x != x)
        best, index = tl.where(better, x, best), tl.where(better, at, index)
        at += CHUNK
    top = peak(best)
    tl.store(peaks + row * 3 * PARTS + part, peak(high))
    tl.store(peaks + (row * 3 + 1) * PARTS + part, top)
    tl.store(peaks + (row * 3 + 2) * PARTS + part, tl.min(low, axis=0))
    tl.store(indices + row * PARTS + part, tl.min(tl.where(best == top, index, V - 1), axis=0))


@triton.jit(do_not_specialize=["rows"])
def greedy_kernel(peaks, indices, tokens, told, rows, V: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr):
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    best = joined(peaks, row, 1, float("-inf"), PARTS, LANES)
    top = peak(best)
    index = tl.load(indices + row * PARTS + lane, mask=lane < PARTS, other=V - 1)
    token = tl.min(tl.where(best == top, index, V - 1), axis=0)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(told + row, token.to(tl.float64))
    tl.store(told + rows + row, peak(joined(peaks, row, 0, float("-inf"), PARTS, LANES)).to(tl.float64))
    tl.store(told + 2 * rows + row, top.to(tl.float64))


@triton.jit
def crossing(total, there, target, N: tl.constexpr):
    """The first of N that is `there` and up to which `total` is more than `target`; where none is, the last that is there."""
    place = tl.arange(0, N)
    over = tl.min(tl.where((total > target) & there, place, N), axis=0)
    return tl.minimum(over, tl.max(tl.where(there, place, 0), axis=0))


@triton.jit
def bin_of_score(score, low, high, BINS: tl.constexpr):
    """Bins as wide as each other between the least and the greatest finite score."""
    place = (score - low) * tl.math.div_rn(BINS * 1.0, high - low)
    return tl.where(place > 0.0, tl.minimum(place, BINS - 1.0), 0.0).to(tl.int32)


@triton.jit
def bin_of_weight(weight, low, shift, BINS: tl.constexpr):
    """Bins as wide as each other in bits from `low` on; what is below is in bin 0."""
    bits = weight.to(tl.int32, bitcast=True)
    return tl.where(bits < low, 0, 1 + tl.minimum((bits - low) >> shift, BINS - 2))


@triton.jit
def count_kernel(scores, peaks, counts, V: tl.constexpr, SHARE: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr,
                 TILE: tl.constexpr, BINS: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    low = tl.min(joined(peaks, row, 2, float("inf"), PARTS, LANES), axis=0)
    high = tl.max(joined(peaks, row, 1, float("-inf"), PARTS, LANES), axis=0)
    number = tl.arange(0, BINS)
    count = tl.zeros((TILE, BINS), tl.int32)
    start, end = part * SHARE, tl.minimum(part * SHARE + SHARE, V)
    while start < end:  # a count of rounds that the compiler does not know, lest it unroll them and spill
        at = start + tl.arange(0, TILE)
        place = bin_of_score(tl.load(scores + row * V + at, mask=at < V, other=0.0), low, high, BINS)
        count += (tl.where(at < V, place, -1)[:, None] == number[None, :]).to(tl.int32)
        start += TILE
    tl.store(counts + (row * PARTS + part) * BINS + number, tl.sum(count, axis=0))


@triton.jit
def softmax_kernel(scores, peaks, least_kept, sums, leasts, V: tl.constexpr, SHARE: tl.constexpr, PARTS: tl.constexpr,
                   LANES: tl.constexpr, CHUNK: tl.constexpr):
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    top = peak(joined(peaks, row, 1, float("-inf"), PARTS, LANES))
    total, least = tl.zeros((CHUNK,), tl.float64), tl.full((CHUNK,), float("inf"), tl.float32)
    kept = float("-inf") if least_kept is None else tl.load(least_kept + row)
    for start in range(0, SHARE, CHUNK):
        at = part * SHARE + start + tl.arange(0, CHUNK)
        score = tl.load(scores + row * V + at, mask=at < V, other=0.0)
        below = score - top
        power = tl.maximum(below.to(tl.float64) * LOG2E, -200.0)
        whole = tl.floor(power)  # the device's exp2 is only exact enough near 0
        made = tl.minimum(tl.exp2((power - whole).to(tl.float32)) * tl.exp2(whole.to(tl.float32)), 1.0)
        made = tl.where(below == below, made, below)
        made = tl.where((score < kept) | (at >= V), 0.0, made)
        tl.store(scores + row * V + at, made, mask=at < V)
        total += made.to(tl.float64)
        least = tl.minimum(least, tl.where(made > 0.0, made, float("inf")))
    tl.store(sums + row * PARTS + part, tl.sum(total, axis=0))
    tl.store(leasts + row * PARTS + part, tl.min(least, axis=0))


@triton.jit(do_not_specialize=["rows"])
def weigh_kernel(weights, peaks, sums, leasts, counts, masses, edges, told, rest, rows, V: tl.constexpr, SHARE: tl.constexpr,
                 PARTS: tl.constexpr, LANES: tl.constexpr, TILE: tl.constexpr, BINS: tl.constexpr):
    """BINS 1: only the mass of each part."""
    row, part, lane = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.arange(0, LANES)
    total = tl.sum(tl.load(sums + row * PARTS + lane, mask=lane < PARTS, other=0.0), axis=0)
    divisor = total.to(tl.float32)
    low, shift = 0, 0
    if BINS > 1:
        least = tl.min(tl.load(leasts + row * PARTS + lane, mask=lane < PARTS, other=float("inf")), axis=0)
        # All weights up to rest / 2V together are at most rest / 2.
        low = tl.maximum(tl.math.div_rn(least, divisor), rest / (2.0 * V)).to(tl.int32, bitcast=True)
        width = tl.math.div_rn(tl.full((), 1.0, tl.float32), divisor).to(tl.int32, bitcast=True) - low
        while (width >> shift) > BINS - 2:
            shift += 1
    if part == 0:
        tl.store(told + rows + row, peak(joined(peaks, row, 0, float("-inf"), PARTS, LANES)).to(tl.float64))
        tl.store(told + 2 * rows + row, total)
        if BINS > 1:
            tl.store(edges + row * 5, low)
            tl.store(edges + row * 5 + 1, shift)
    number = tl.arange(0, BINS)
    count, mass = tl.zeros((TILE, BINS), tl.int32), tl.zeros((TILE, BINS), tl.float64)
    start, end = part * SHARE, tl.minimum(part * SHARE + SHARE, V)
    while start < end:  # as above
        at = start + tl.arange(0, TILE)
        weight = tl.math.div_rn(tl.load(weights + row * V + at, mask=at < V, other=0.0), divisor)
        weight = tl.where(weight == weight, weight, 0.0)
        tl.store(weights + row * V + at, weight, mask=at < V)
        if BINS > 1:
            mine = tl.where(at < V, bin_of_weight(weight, low, shift, BINS), -1)[:, None] == number[None, :]
            count += mine.to(tl.int32)
            mass += tl.where(mine, weight.to(tl.float64)[:, None], 0.0)
        else:
            mass += weight.to(tl.float64)[:, None]
        start += TILE
    tl.store(masses + (row * PARTS + part) * BINS + number, tl.sum(mass, axis=0))
    if BINS > 1:
        tl.store(counts + (row * PARTS + part) * BINS + number, tl.sum(count, axis=0))


@triton.jit
def bound_of(rest):
    """The greatest float64 that rounds to the float32 `rest` or to less."""
    rest = tl.full((), rest, tl.float32)
    bits = rest.to(tl.int32, bitcast=True)
    middle = (rest.to(tl.float64) + (bits + 1).to(tl.float32, bitcast=True).to(tl.float64)) * 0.5
    return (middle.to(tl.int64, bitcast=True) - (bits & 1)).to(tl.float64, bitcast=True)  # it rounds to the even one


@triton.jit(do_not_specialize=["top_k"])
def gather_kernel(values, peaks, counts, masses, edges, uniforms, keys, positions, rest, top_k, V: tl.constexpr,
                  SHARE: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr, CHUNK: tl.constexpr, BINS: tl.constexpr):
    """The values in the bins that can hold the answer. masses None: the score that is the k-th; else what top-p, then the draw
    look for: how much top-p drops is known but for its own bin, so the draw's are all those that this leaves open."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    number, lane = tl.arange(0, BINS), tl.arange(0, LANES)[:, None]
    tile = (row * PARTS + lane) * BINS + number[None, :]
    count = tl.load(counts + tile, mask=lane < PARTS, other=0)
    there = tl.sum(count, axis=0)
    if masses is None:
        first = crossing(tl.cumsum(there, axis=0), there > 0, V - top_k, BINS)
        from_bin, to_bin = first, first
    else:
        mass = tl.sum(tl.load(masses + tile, mask=lane < PARTS, other=0.0), axis=0)
        upto, uniform, total = tl.cumsum(mass, axis=0), tl.load(uniforms + row), tl.sum(mass, axis=0)
        first = crossing(upto, there > 0, bound_of(rest), BINS)
        least = tl.sum(tl.where(number < first, mass, 0.0), axis=0)
        most = tl.sum(tl.where(number <= first, mass, 0.0), axis=0)
        from_bin = crossing(upto, there > 0, least + uniform * (total - least), BINS)
        to_bin = crossing(upto, there > 0, most + uniform * (total - most), BINS)
    if part == 0:
        tl.store(edges + row * 5 + 2, first)
        tl.store(edges + row * 5 + 3, from_bin)
        tl.store(edges + row * 5 + 4, to_bin)
    wanted = (number == first) | ((number >= from_bin) & (number <= to_bin))
    offset = tl.sum(tl.sum(tl.where((lane < part) & wanted[None, :], count, 0), axis=1), axis=0)
    if masses is None:
        low = tl.min(joined(peaks, row, 2, float("inf"), PARTS, LANES), axis=0)
        high = tl.max(joined(peaks, row, 1, float("-inf"), PARTS, LANES), axis=0)
    else:
        low, high = tl.load(edges + row * 5), tl.load(edges + row * 5 + 1)
    for start in range(0, SHARE, CHUNK):
        at = part * SHARE + start + tl.arange(0, CHUNK)
        value = tl.load(values + row * V + at, mask=at < V, other=0.0)
        if masses is None:
            place = bin_of_score(value, low, high, BINS)
        else:
            place = bin_of_weight(value, low, high, BINS)
        mine = ((place == first) | ((place >= from_bin) & (place <= to_bin))) & (at < V)
        into = row * V + offset + tl.cumsum(mine.to(tl.int32), axis=0) - 1
        bits = value.to(tl.int32, bitcast=True)
        if masses is None:
            bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # whole numbers in the order of the floats
        else:
            tl.store(positions + into, at, mask=mine)
        tl.store(keys + into, bits, mask=mine)
        offset += tl.sum(mine.to(tl.int32), axis=0)


@triton.jit
def halve(keys, n, low, bits, before, target, MASS: tl.constexpr, LIST: tl.constexpr):
    """Of n keys those from `low` to low + 2^bits, in ascending order the first up to which there is more than `target`, or the
    last; `before` them all there is so much. -> the key, how much is before it, and how many are equal to it."""
    left, bits = -1, bits + 1  # the first round only counts them
    while bits > 0:
        bits -= 1
        middle = low + (tl.full((), 1, tl.int64) << bits)
        many, mass = tl.zeros((LIST,), tl.int32), tl.zeros((LIST,), tl.float64)
        start = 0
        while start < n:
            at = start + tl.arange(0, LIST)
            key = tl.load(keys + at, mask=at < n, other=0)
            mine = (at < n) & (key >= low) & (key < middle)
            many += mine.to(tl.int32)
            if MASS:
                mass += tl.where(mine, key.to(tl.float32, bitcast=True).to(tl.float64), 0.0)
            start += LIST
        count = tl.sum(many, axis=0)
        more = tl.sum(mass, axis=0) if MASS else count.to(tl.float64)
        lower = (left < 0) | ((before + more > target) & (count > 0)) | (count == left)
        low, before = tl.where(lower, low, middle), tl.where(lower, before, before + more)
        left = tl.where(lower, count, left - count)
    return low, before, left


@triton.jit(do_not_specialize=["top_k"])
def threshold_kernel(keys, counts, edges, least_kept, top_k, V: tl.constexpr, PARTS: tl.constexpr, LANES: tl.constexpr,
                     LIST: tl.constexpr, BINS: tl.constexpr):
    """The k-th score of each row."""
    row, number, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BINS), tl.arange(0, LANES)[:, None]
    count = tl.sum(tl.load(counts + (row * PARTS + lane) * BINS + number[None, :], mask=lane < PARTS, other=0), axis=0)
    first = tl.load(edges + row * 5 + 2)
    n, before = tl.sum(tl.where(number == first, count, 0), axis=0), tl.sum(tl.where(number < first, count, 0), axis=0)
    lowest = tl.full((), -0x80000000, tl.int64)
    key, _, _ = halve(keys + row * V, n, lowest, 32, before.to(tl.float64), V - top_k, False, LIST)
    key = key.to(tl.int32)
    tl.store(least_kept + row, tl.where(key < 0, key ^ 0x7FFFFFFF, key).to(tl.float32, bitcast=True))


@triton.jit
def fitting(room, each, left):
    """How many of `left` equal masses `each` fit into `room`, at most all but the last."""
    fit = tl.minimum(tl.floor(room / each), left - 1.0)
    return tl.where(fit > 0.0, fit, 0.0)  # not what is no number


@triton.jit
def nucleus_kernel(keys, positions, counts, masses, edges, uniforms, tokens, told, rest, V: tl.constexpr, PARTS: tl.constexpr,
                   LANES: tl.constexpr, LIST: tl.constexpr, BINS: tl.constexpr):
    """Top-p and the draw, in the order of the weights."""
    row, number, lane = tl.program_id(0).to(tl.int64), tl.arange(0, BINS), tl.arange(0, LANES)[:, None]
    tile = (row * PARTS + lane) * BINS + number[None, :]
    count = tl.sum(tl.load(counts + tile, mask=lane < PARTS, other=0), axis=0)
    mass = tl.sum(tl.load(masses + tile, mask=lane < PARTS, other=0.0), axis=0)
    low, shift, first = tl.load(edges + row * 5), tl.load(edges + row * 5 + 1), tl.load(edges + row * 5 + 2)
    from_bin, to_bin = tl.load(edges + row * 5 + 3), tl.load(edges + row * 5 + 4)
    wanted = (number == first) | ((number >= from_bin) & (number <= to_bin))
    n, keys, positions = tl.sum(tl.where(wanted, count, 0), axis=0), keys + row * V, positions + row * V
    before, bound = tl.sum(tl.where(number < first, mass, 0.0), axis=0), bound_of(rest)
    start = (low + ((first - 1) << shift)).to(tl.int64)
    least, before, left = halve(keys, n, start, shift, before, bound, True, LIST)
    each = least.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    gone = fitting(bound - before, each, left) * each
    dropped = before + gone
    target = tl.load(uniforms + row) * (tl.sum(mass, axis=0) - dropped)
    drawn = crossing(tl.cumsum(mass, axis=0) - dropped, wanted & (number >= first) & (count > 0), target, BINS)
    within = drawn == first
    start = tl.where(within, least, (low + ((drawn - 1) << shift)).to(tl.int64))
    before = tl.where(within, -gone, tl.sum(tl.where(number < drawn, mass, 0.0), axis=0) - dropped)
    key, before, left = halve(keys, n, start, shift, before, target, True, LIST)
    each = key.to(tl.int32).to(tl.float32, bitcast=True).to(tl.float64)
    rank = fitting(target - before, each, left).to(tl.int32)
    token, start = 0, 0
    while start < n:
        at = start + tl.arange(0, LIST)
        equal = (tl.load(keys + at, mask=at < n, other=0) == key) & (at < n)
        mine = equal & (tl.cumsum(equal.to(tl.int32), axis=0) - 1 == rank)
        token += tl.sum(tl.where(mine, tl.load(positions + at, mask=mine, other=0), 0), axis=0)
        rank -= tl.sum(equal.to(tl.int32), axis=0)
        start += LIST
    tl.store(tokens + row, tl.cast(token, tl.int64))
    tl.store(told + row, tl.cast(token, tl.float64))


@triton.jit
def draw_kernel(weights, masses, uniforms, tokens, told, V: tl.constexpr, SHARE: tl.constexpr, PARTS: tl.constexpr,
                LANES: tl.constexpr, CHUNK: tl.constexpr):
    """The draw in the order of the vocabulary."""
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, LANES)
    mass = tl.load(masses + row * PARTS + lane, mask=lane < PARTS, other=0.0)
    target = tl.load(uniforms + row) * tl.sum(mass, axis=0)
    part = crossing(tl.cumsum(mass, axis=0), mass > 0.0, target, LANES)
    before = tl.sum(tl.where(lane < part, mass, 0.0), axis=0)
    token, last = V, 0
    for start in range(0, SHARE, CHUNK):
        at = part * SHARE + start + tl.arange(0, CHUNK)
        weight = tl.load(weights + row * V + at, mask=at < V, other=0.0).to(tl.float64)
        over = (before + tl.cumsum(weight, axis=0) > target) & (weight > 0.0)
        token = tl.minimum(token, tl.min(tl.where(over, at, V), axis=0))
        last = tl.maximum(last, tl.max(tl.where(weight > 0.0, at, 0), axis=0))
        before += tl.sum(weight, axis=0)
    token = tl.where(token < V, token, last)
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(told + row, token.to(tl.float64))


def run(logits: torch.Tensor, seen: torch.Tensor | None, uniforms: torch.Tensor | None, *, penalty: float = 1.0,
        temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A token for each row of logits [B, V], and what the host must know of it, as `glmc.runtime.sample` means them.

    seen: bool [B, V], where the penalty applies; None for no penalty. uniforms: float64 [B] in [0, 1), None at temperature 0,
    which is greedy: the lowest index of the greatest score, V - 1 where one is NaN.
    -> tokens int64 [B], and float64 [3, B]: the tokens again; the greatest logit, NaN if one is; the greatest score after the
    penalty, or of a draw the sum over which it is normalised: where that is not finite the token means nothing.
    """
    rows, vocabulary = logits.shape
    logits, stride = rows_of(logits)
    seen = None if seen is None else seen.contiguous()
    chunk, tile = min(power(vocabulary), CHUNK), min(power(vocabulary), TILE)
    share = blocks(blocks(vocabulary, PARTS), chunk) * chunk
    parts = blocks(vocabulary, share)
    cut = {"V": vocabulary, "SHARE": share, "PARTS": parts}
    joint = {**cut, "LANES": power(parts)}
    row = {"V": vocabulary, "PARTS": parts, "LANES": power(parts)}

    def new(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty((rows, *shape), dtype=dtype, device=logits.device)

    tokens, told = new(torch.int64), torch.empty((3, rows), dtype=torch.float64, device=logits.device)
    peaks, indices = new(torch.float32, 3, parts), new(torch.int32, parts)
    grid = (rows, parts)
    scores = None if uniforms is None else new(torch.float32, vocabulary)
    launch(score_kernel, grid, logits, seen, scores, peaks, indices, _single(penalty), _single(temperature), STRIDE=stride,
           CHUNK=chunk, **cut)
    if scores is None:
        launch(greedy_kernel, (rows,), peaks, indices, tokens, told, rows, warps=1, **row)
        return tokens, told
    least_kept, counts, edges = None, new(torch.int32, parts, BINS), new(torch.int32, 5)
    keys = new(torch.int32, vocabulary) if top_p < 1 or 0 < top_k < vocabulary else None
    rest = _single(1 - top_p)
    if 0 < top_k < vocabulary:
        least_kept = new(torch.float32)
        launch(count_kernel, grid, scores, peaks, counts, TILE=tile, BINS=BINS, warps=8, **joint)
        launch(gather_kernel, grid, scores, peaks, counts, None, edges, None, keys, None, rest, top_k, CHUNK=chunk, BINS=BINS,
               **joint)
        launch(threshold_kernel, (rows,), keys, counts, edges, least_kept, top_k, LIST=LIST, BINS=BINS, warps=8, **row)
    sums, leasts = new(torch.float64, parts), new(torch.float32, parts)
    launch(softmax_kernel, grid, scores, peaks, least_kept, sums, leasts, CHUNK=chunk, **joint)
    masses = new(torch.float64, parts, BINS if top_p < 1 else 1)
    if top_p < 1:
        positions = new(torch.int32, vocabulary)
        launch(weigh_kernel, grid, scores, peaks, sums, leasts, counts, masses, edges, told, rest, rows, TILE=tile, BINS=BINS,
               warps=8, **joint)
        launch(gather_kernel, grid, scores, peaks, counts, masses, edges, uniforms, keys, positions, rest, 0, CHUNK=chunk,
               BINS=BINS, **joint)
        launch(nucleus_kernel, (rows,), keys, positions, counts, masses, edges, uniforms, tokens, told, rest, LIST=LIST,
               BINS=BINS, warps=8, **row)
    else:
        launch(weigh_kernel, grid, scores, peaks, sums, leasts, counts, masses, edges, told, rest, rows, TILE=chunk, BINS=1,
               **joint)
        launch(draw_kernel, (rows,), scores, masses, uniforms, tokens, told, CHUNK=chunk, **joint)
    return tokens, told


def _single(value: float) -> float:
    """`value` rounded to float32, infinite where it is beyond."""
    return ctypes.c_float(value).value
