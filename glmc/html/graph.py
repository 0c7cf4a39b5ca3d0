"""A region drawn as SVG: a box for each step, a frame around the steps that a fusion swallowed.

Steps of both drawings of a region that belong together carry the same `data-k`.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from glmc.html.layered import Layout, Point, layered
from glmc.html.page import Markup, escaped
from glmc.html.steps import Step, short

_CHARACTER, _LINE, _MOST = 6.7, 15.0, 34
_FRAME, _HEAD = 14.0, 24.0
_PRODUCTS = re.compile(r"(linear|matmul|b?mm|addmm|conv\dd|einsum|scaled_dot_product_attention|embedding)$")
_VIEWS = re.compile(r"(view|reshape|transpose|permute|t|expand|slice|select|unsqueeze|squeeze|to|clone|contiguous|cat|chunk"
                    r"|split|split_with_sizes|unbind|flatten|unflatten|alias|detach|getitem|narrow|stack|as_strided)$")


@dataclass(frozen=True)
class Frame:
    """What a fusion swallowed. steps: names; key: the `data-k` that its fused step has too."""

    key: str
    title: str
    steps: frozenset[str]


@dataclass(frozen=True)
class _Box:
    lines: tuple[tuple[str, str], ...]
    """(class, text) of each line."""
    size: Point


def drawn(steps: Sequence[Step], title: str, keys: Mapping[str, str], kernels: Mapping[str, str],
          frames: Sequence[Frame] = ()) -> Markup:
    """One drawing. keys: step -> its `data-k`. kernels: step -> what runs it.

    Each step has `data-k`, `data-n` (its line's name) and, where that is known, `data-kernel`; several results, `data-shape`.
    """
    boxes = {step.name: _box(step, kernels.get(step.name, "")) for step in steps}
    owner = {step: frame.key for frame in frames for step in frame.steps}
    insides = {frame.key: _inside(frame, steps, boxes) for frame in frames}
    sizes: dict[str, Point] = {}
    last = {owner[step.name]: step.name for step in steps if step.name in owner}
    for step in _sorted(steps, owner):
        key = owner.get(step.name)
        if key is None:
            sizes[step.name] = boxes[step.name].size
        elif last[key] == step.name:
            sizes[key] = (insides[key].width + 2 * _FRAME, insides[key].height + _FRAME + _HEAD)
    edges = [(read, step.name) for step in steps for read in step.reads]
    outer = [(owner.get(a, a), owner.get(b, b)) for a, b in edges]
    whole = layered(sizes, [(a, b) for a, b in outer if a != b])
    routes: dict[str, list[list[Point]]] = {}
    for (a, b), between in zip(edges, outer, strict=True):
        if between[0] != between[1]:
            routes.setdefault(a, []).append(_ends(whole.routes[between], insides, (a, b), owner, whole))
    parts = list(map(_path, routes.values()))
    for frame in frames:
        parts.append(_frame(frame, insides[frame.key], whole.corners[frame.key], sizes[frame.key]))
    for step in steps:
        key = owner.get(step.name)
        x, y = whole.corners[step.name] if key is None else _within(whole.corners[key], insides[key].corners[step.name])
        parts.append(_node(step, boxes[step.name], (x, y), keys.get(step.name, ""), kernels.get(step.name, "")))
    width, height = whole.width + 16, whole.height + 16
    return Markup(f'<svg role="group" aria-label="{escaped(title)}" width="{width:.0f}" height="{height:.0f}" '
                  f'viewBox="-8 -8 {width:.0f} {height:.0f}" data-w="{width:.0f}">\n' + "\n".join(parts) + "</svg>")


def _sorted(steps: Sequence[Step], owner: Mapping[str, str]) -> list[Step]:
    """Steps so that no frame's last step comes before what any of the frame's steps reads."""
    unit = {step.name: owner.get(step.name, step.name) for step in steps}
    members: dict[str, list[Step]] = {}
    for step in steps:
        members.setdefault(unit[step.name], []).append(step)
    done: dict[str, None] = {}

    for start in members:
        stack = [start]
        while stack:
            top = stack[-1]
            waits = [unit[read] for step in members[top] for read in step.reads
                     if unit[read] != top and unit[read] not in done and unit[read] not in stack]
            if top in done or not waits:
                done.setdefault(stack.pop())
            else:
                stack.append(waits[0])
    return [step for one in done for step in members[one]]


def _inside(frame: Frame, steps: Sequence[Step], boxes: Mapping[str, _Box]) -> Layout:
    """The steps of a frame, and a point at its edge for each value that comes in (">name") or goes out ("name>")."""
    members = [step for step in steps if step.name in frame.steps]
    sizes: dict[str, Point] = {f">{read}": (6.0, 0.0) for step in members for read in step.reads if read not in frame.steps}
    edges = [(read if read in frame.steps else f">{read}", step.name) for step in members for read in step.reads]
    sizes |= {step.name: boxes[step.name].size for step in members}
    for step in steps:
        for read in step.reads if step.name not in frame.steps else ():
            if read in frame.steps:
                sizes[f"{read}>"] = (6.0, 0.0)
                edges.append((read, f"{read}>"))
    return layered(sizes, edges)


def _within(corner: Point, inner: Point) -> Point:
    return corner[0] + _FRAME + inner[0], corner[1] + _HEAD + inner[1]


def _ends(route: list[Point], insides: Mapping[str, Layout], edge: tuple[str, str], owner: Mapping[str, str], whole: Layout,
          ) -> list[Point]:
    """An edge's route with its ends moved to where the value leaves or enters a frame."""
    points = list(route)
    for end, mark, places in ((0, f"{edge[0]}>", (0, 1)), (1, f">{edge[0]}", (-2, -1))):
        key = owner.get(edge[end])
        if key is not None and mark in insides[key].corners:
            x = _within(whole.corners[key], insides[key].corners[mark])[0] + 3
            for place in places:
                points[place] = (x, points[place][1])
    return points


def _path(routes: Sequence[list[Point]]) -> str:
    """All edges of one step; what they share is drawn once."""
    pieces: dict[str, str] = {}
    for points in routes:
        for number, ((x, y), (a, b)) in enumerate(itertools.pairwise(points)):
            middle = (y + b) / 2
            drawn = f"V{b:.0f}" if number % 2 == 0 else f"C{x:.0f} {middle:.0f} {a:.0f} {middle:.0f} {a:.0f} {b:.0f}"
            if (x, y) != (a, b):
                pieces[f"M{x:.0f} {y:.0f}{drawn}"] = f"{a:.0f} {b:.0f}"
    text, at = "", ""
    for piece, end in pieces.items():
        start, curve = re.match(r"M(\S+ -?\d+)(.*)", piece).groups()  # type: ignore[union-attr]
        text += curve if start == at else f"M{start}{curve}"
        at = end
    return f'<path class="e" d="{text}"/>'


def _frame(frame: Frame, inside: Layout, corner: Point, size: Point) -> str:
    (x, y), (width, height) = corner, size
    routes: dict[str, list[list[Point]]] = {}
    for (one, other), route in inside.routes.items():
        points = [_within(corner, point) for point in route]
        if one.startswith(">"):
            points[0] = (points[0][0], y)
        if other.endswith(">"):
            points[-1] = (points[-1][0], y + height)
        routes.setdefault(one, []).append(points)
    count = "1 step" if len(frame.steps) == 1 else f"{len(frame.steps)} steps"
    return (f'<g class="f" data-k="{frame.key}"><rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" '
            f'rx="10"/><text x="{x + 12:.0f}" y="{y + 16:.0f}">{escaped(frame.title)} '
            f'<tspan class="q">{count}</tspan></text></g>'
            + "".join(map(_path, routes.values())))


def _kind(step: Step) -> str:
    if step.kind != "step":
        return "io"
    if step.fused:
        return "fused"
    return "product" if _PRODUCTS.match(step.title) else "view" if _VIEWS.match(step.title) else "plain"


def _box(step: Step, kernel: str) -> _Box:
    shapes = short(step.shape).split("; ")
    more = f" and {len(shapes) - 1} more" if len(shapes) > 1 else ""
    lines = [("o", step.title), *([("q", _cut(shapes[0], _MOST - len(more)) + more)] if shapes[0] else [])]
    lines += [("w", _cut(f"{name} {short(text).partition(' ')[2]}")) for name, text in step.weights[:4]]
    lines += [("w", f"and {len(step.weights) - 4} weights more")] if len(step.weights) > 4 else []
    lines += [("c", _cut(f"{name} {short(text).partition(' ')[2]}")) for name, text in step.caches]
    if kernel and (step.fused or kernel not in ("torch", step.title)):
        lines.append(("k", _cut(f"runs {kernel.removeprefix('glmc/kernels/')}")))
    width = max(len(text) * (7.6 if kind == "o" else _CHARACTER) for kind, text in lines) + 20
    return _Box(tuple(lines), (max(width, 92.0), len(lines) * _LINE + 11))


def _cut(text: str, most: int = _MOST) -> str:
    return text if len(text) <= most else text[:most - 1] + "…"


def _node(step: Step, box: _Box, corner: Point, key: str, kernel: str) -> str:
    (x, y), (width, height) = corner, box.size
    texts = "".join(f'<tspan x="{x + 10:.0f}" y="{y + 17 + _LINE * i:.0f}" class="{kind}">{escaped(text)}</tspan>'
                    for i, (kind, text) in enumerate(box.lines))
    said = " ".join([step.title, short(step.shape), *(n for n, _ in (*step.weights, *step.caches))])
    return (f'<g class="n {_kind(step)}" data-k="{key}" data-n="{escaped(step.name)}"'
            + (f' data-kernel="{escaped(kernel)}"' if kernel else "")
            + (f' data-shape="{escaped(step.shape)}"' if ";" in step.shape else "")
            + f' aria-label="{escaped(said)}"><rect x="{x:.0f}" y="{y:.0f}" '
            f'width="{width:.0f}" height="{height:.0f}" rx="6"/><text>{texts}</text></g>')
