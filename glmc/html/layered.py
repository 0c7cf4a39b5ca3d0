"""A layered layout of a graph without cycles: what reads stands below what it reads, lines run between.

Sugiyama's method: a rank for each node, bends where an edge passes ranks, sweeps that put each node near its neighbours, and
places along a rank by isotonic regression, which keeps the order and the least distance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]
GAP, RANK_GAP, SWEEPS = 18.0, 30.0, 12


@dataclass
class Layout:
    """corners: node -> its left upper corner. routes: edge -> pairs of points, each pair straight down, curves between them."""

    width: float
    height: float
    corners: dict[str, Point]
    routes: dict[tuple[str, str], list[Point]] = field(default_factory=dict)


@dataclass
class _Item:
    """A node, or a bend of an edge from `source`, in a rank."""

    width: float
    rank: int
    above: list[_Item] = field(default_factory=list)
    below: list[_Item] = field(default_factory=list)
    place: int = 0
    x: float = 0.0

    def toward(self, down: bool) -> list[_Item]:
        return self.above if down else self.below


def layered(sizes: Mapping[str, Point], edges: Sequence[tuple[str, str]]) -> Layout:
    """sizes: node -> width and height, in an order in which none comes before what it reads. edges: (read, reader)."""
    pairs = list(dict.fromkeys(edges))
    ranks = _ranks(list(sizes), pairs)
    items = {name: _Item(width, ranks[name]) for name, (width, _) in sizes.items()}
    rows: list[list[_Item]] = [[] for _ in range(max(ranks.values(), default=0) + 1)]
    for item in items.values():
        rows[item.rank].append(item)
    bends = _bends(pairs, items, rows)
    _order(rows)
    _along(rows)
    heights = [max((sizes[n][1] for n in sizes if ranks[n] == rank), default=0.0) for rank in range(len(rows))]
    tops = [sum(heights[:rank]) + RANK_GAP * rank for rank in range(len(rows))]
    left = min((i.x - i.width / 2 for row in rows for i in row), default=0.0)
    right = max((i.x + i.width / 2 for row in rows for i in row), default=0.0)
    corners = {name: (item.x - item.width / 2 - left, tops[item.rank]) for name, item in items.items()}
    routes = {}
    for (one, other), between in bends.items():
        start, end = items[one], items[other]
        bottom = tops[start.rank] + sizes[one][1]
        points = [(start.x - left, bottom), (start.x - left, tops[start.rank] + heights[start.rank])]
        for bend in between:
            points += [(bend.x - left, tops[bend.rank]), (bend.x - left, tops[bend.rank] + heights[bend.rank])]
        routes[one, other] = [*points, (end.x - left, tops[end.rank]), (end.x - left, tops[end.rank])]
    return Layout(right - left, tops[-1] + heights[-1], corners, routes)


def _ranks(names: list[str], pairs: list[tuple[str, str]]) -> dict[str, int]:
    """The longest way from a source; a source stands right above its first reader."""
    reads: dict[str, list[str]] = {name: [] for name in names}
    readers: dict[str, list[str]] = {name: [] for name in names}
    for one, other in pairs:
        reads[other].append(one)
        readers[one].append(other)
    ranks: dict[str, int] = {}
    for name in names:
        ranks[name] = max((ranks[n] + 1 for n in reads[name]), default=0)
    for name in names:
        if not reads[name] and readers[name]:
            ranks[name] = min(ranks[n] for n in readers[name]) - 1
    return ranks


def _bends(pairs: list[tuple[str, str]], items: dict[str, _Item], rows: list[list[_Item]],
           ) -> dict[tuple[str, str], list[_Item]]:
    """A bend in every rank that an edge passes; all edges of one node share them."""
    chains: dict[str, list[_Item]] = {}
    found: dict[tuple[str, str], list[_Item]] = {}
    for one, other in sorted(pairs, key=lambda pair: items[pair[1]].rank):
        start, end = items[one], items[other]
        chain = chains.setdefault(one, [])
        while start.rank + len(chain) + 1 < end.rank:
            bend, before = _Item(8.0, start.rank + len(chain) + 1), chain[-1] if chain else start
            before.below.append(bend)
            bend.above.append(before)
            rows[bend.rank].append(bend)
            chain.append(bend)
        found[one, other] = between = chain[:end.rank - start.rank - 1]
        last = between[-1] if between else start
        last.below.append(end)
        end.above.append(last)
    return found


def _order(rows: list[list[_Item]]) -> None:
    """Sweep down and up, each row by the mean place of its neighbours; the order with the fewest crossings stays."""
    def number() -> None:
        for row in rows:
            for place, item in enumerate(row):
                item.place = place

    number()
    best, order = _crossings(rows), [list(row) for row in rows]
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            wanted = {id(i): sum(n.place for n in near) / len(near) if (near := i.toward(down)) else float(i.place)
                      for i in row}
            row.sort(key=lambda item: wanted[id(item)])
            for place, item in enumerate(row):
                item.place = place
        crossings = _crossings(rows)
        if crossings < best:
            best, order = crossings, [list(row) for row in rows]
    for row, kept in zip(rows, order, strict=True):
        row[:] = kept
    number()


def _crossings(rows: list[list[_Item]]) -> int:
    count = 0
    for row in rows:
        ends = [sorted(n.place for n in item.below) for item in row]
        seen: list[int] = []
        for mine in ends:
            count += sum(other > place for place in mine for other in seen)
            seen += mine
    return count


def _along(rows: list[list[_Item]]) -> None:
    """The x of every item: near the mean of its neighbours, bends straight above each other where that can be."""
    for row in rows:
        _settle(row, [0.0] * len(row), [1.0] * len(row))
    for sweep in range(4 * SWEEPS):
        down = sweep % 2 == 0
        for row in rows if down else rows[::-1]:
            wanted, weights = [], []
            for item in row:
                near = item.toward(down) or ([] if sweep < 2 * SWEEPS else item.toward(not down))
                wanted.append(sum(n.x for n in near) / len(near) if near else item.x)
                weights.append(4.0 if item.width == 8.0 else 1.0 + len(near) if near else 0.1)
            _settle(row, wanted, weights)


def _settle(row: list[_Item], wanted: list[float], weights: list[float]) -> None:
    """Least squares under the order and the least distances: pool neighbours that would overlap."""
    offsets, offset = [], 0.0
    for before, item in zip([None, *row], row, strict=False):
        offset += 0.0 if before is None else (before.width + item.width) / 2 + GAP
        offsets.append(offset)
    blocks: list[list[float]] = []  # sum of weight * place, weight, count
    for place, weight, shift in zip(wanted, weights, offsets, strict=True):
        blocks.append([weight * (place - shift), weight, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            last = blocks.pop()
            blocks[-1] = [a + b for a, b in zip(blocks[-1], last, strict=True)]
    at = 0
    for total, weight, count in blocks:
        for _ in range(int(count)):
            row[at].x = total / weight + offsets[at]
            at += 1
