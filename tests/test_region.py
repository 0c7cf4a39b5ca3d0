"""Running a region's text: only ops of closed tables, only literals, nothing evaluated."""

from __future__ import annotations

import builtins
import os

import pytest
import torch

from glmc.errors import DamagedArtifact
from glmc.program import Region
from glmc.region import Bound, resolve

HOSTILE = ["os.system", "builtins.eval", "builtins.exec", "eval", "torch.load", "operator.attrgetter", "operator.call",
           "operator.methodcaller", "operator.setitem", "glmc.nothing", "glmc.__init__", "glmc...rms_norm",
           "glmc.rms_norm.cpu",
           "aten.from_file.default", "aten.set_.source_Tensor", "aten.resize_.default",
           "aten", "aten.add", "aten.add.Nothing", "aten.nothing.default", "aten.__class__.mro", "aten.add.__class__",
           "aten._dir.default", "prims.add.default", "transformers.x.default", "", ".", "glmc./rms_norm"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_outside_the_tables_is_refused(name):
    with pytest.raises(DamagedArtifact):
        resolve(name, "cpu")


@pytest.mark.parametrize("name", ["aten.add.Tensor", "operator.floordiv", "glmc.rms_norm", "glmc.attention"])
def test_names_of_the_tables_resolve(name):
    assert callable(resolve(name, "cpu"))


def region(*lines):
    body = "".join(f"    {line}\n" for line in lines)
    return Region.parse(f'def head_1(x: "value float32 [B, S]") -> "float32 [B, S]":\n{body}')


def test_lines_run_in_order_and_every_literal_arrives():
    bound = Bound(region("add = aten.add.Tensor(x, x, alpha=-2)", "size = aten.sym_size.int(x, -1)",
                         "mul = operator.mul(size, 2)", "full = aten.full.default([mul], -inf, dtype=torch.float64)",
                         "to = aten.to.dtype(add, torch.bfloat16)", "sum = aten.sum.default(x, dtype=None)",
                         "return (add, full, to, sum)"), "cpu")
    x = torch.randn(2, 3)
    add, full, to, total = bound(x)
    assert torch.equal(add, -x)
    assert torch.equal(full, torch.full((6,), float("-inf"), dtype=torch.float64))
    assert torch.equal(to, (-x).bfloat16())
    assert torch.equal(total, x.sum())


def test_values_are_let_go_when_nobody_needs_them():
    alive = []

    class Watched(torch.Tensor):
        def __del__(self):
            alive.remove(self.shape)

    bound = Bound(region("neg = aten.neg.default(x)", "sum = aten.sum.default(neg)", "exp = aten.exp.default(sum)",
                         "return (exp,)"), "cpu")
    real = bound._lines[0][0]

    def watched(x):
        made = real(x).as_subclass(Watched)
        alive.append(made.shape)
        return made

    def expects_nothing_alive(x):
        assert alive == []
        return x

    bound._lines[0] = (watched, *bound._lines[0][1:])
    bound._lines[1] = (lambda x: x.as_subclass(torch.Tensor).sum(), *bound._lines[1][1:])
    bound._lines[2] = (expects_nothing_alive, *bound._lines[2][1:])
    bound(torch.randn(2, 3))


@pytest.mark.parametrize("lines", [
    ("y = aten.neg.default(unknown)", "return (y,)"),
    ("y = aten.neg.default(__import__('os'))", "return (y,)"),
    ("y = aten.neg.default(x.data)", "return (y,)"),
    ("y = aten.add.Tensor(x, [i for i in x])", "return (y,)"),
    ("y = aten.add.Tensor(x, 1 + 1)", "return (y,)"),
    ("y = aten.neg.default(-x)", "return (y,)"),
    ("y = aten.neg.default(-'x')", "return (y,)"),
    ("y = aten.to.dtype(x, torch.load)", "return (y,)"),
    ("y = aten.to.dtype(x, os.environ)", "return (y,)"),
    ("y = aten.neg.default(lambda: x)", "return (y,)"),
    ("y = os.system('true')", "return (y,)"),
    ("y = (lambda: x)()", "return (y,)"),
    ("y = aten.neg.default(*x)", "return (y,)"),
    ("y = aten.neg.default(**x)", "return (y,)"),
    ("import os", "return (x,)"),
    ("y = x", "return (y,)"),
    ("y, z = aten.neg.default(x)", "return (y,)"),
    ("y: int = aten.neg.default(x)", "return (y,)"),
    ("y = z = aten.neg.default(x)", "return (y,)"),
    ("x[0] = aten.neg.default(x)", "return (x,)"),
    ("return (x,)", "y = aten.neg.default(x)"),
    ("y = aten.neg.default(x)",),
    ("return x",),
    ("return (unknown,)",),
    ("return (x.data,)",),
    ("return",),
])
def test_a_line_that_glmc_does_not_write_is_damage(lines, monkeypatch):
    for module, name in ((os, "system"), (builtins, "__import__")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, real=real, **k: pytest.fail("ran") if a[:1] in (("os",), ("true",))
                            else real(*a, **k))
    with pytest.raises(DamagedArtifact):
        Bound(region(*lines), "cpu")


def test_a_region_without_lines_is_damage():
    with pytest.raises(DamagedArtifact):
        Bound(Region("head_1", (), (), ()), "cpu")
