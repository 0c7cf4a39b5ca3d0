"""One name for one thing: a fusion, its kernel folder and the promise of a family carry the same name."""

from __future__ import annotations

import ast

import pytest
from house.source import ROOT, python_files, text

FUSIONS = [path for path in python_files("passes/fusions") if not path.rsplit("/", 1)[1].startswith("_")]
FAMILIES = [path for path in python_files("glmc/families") if not path.endswith("__init__.py")]


def kernel_of(path: str) -> str:
    """The file that must hold the CPU kernel of a fusion: passes/fusions/rope.py -> glmc/kernels/rope/cpu.py."""
    return f"glmc/kernels/{path.rpartition('/')[2].removesuffix('.py')}/cpu.py"


def names_said(source: str) -> set[str]:
    """Texts and keyword names in a file: what a family's promises can be written with."""
    tree = ast.parse(source)
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return said | {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}


@pytest.mark.parametrize("path", FUSIONS)
def test_a_fusion_has_its_kernel(path):
    assert (ROOT / kernel_of(path)).exists(), \
        f"{path} has no {kernel_of(path)}: write the kernel under the fusion's name, or rename one of the two"


@pytest.mark.parametrize("path", FUSIONS)
def test_a_fusion_is_promised_by_a_family(path):
    name = path.rpartition("/")[2].removesuffix(".py")
    assert any(name in names_said(text(family)) for family in FAMILIES), \
        f"no file in glmc/families/ promises {name}: add it to `promises` where it occurs, or remove {path}"


def test_planted_violations_are_found():
    assert kernel_of("passes/fusions/rope.py") == "glmc/kernels/rope/cpu.py"
    assert not (ROOT / kernel_of("passes/fusions/no_such_fusion.py")).exists()
    assert "rope" in names_said("promises = {'rope': 2}")
    assert "rope" in names_said("promises = dict(rope=2)")
    assert "rope" not in names_said("promises = {'rope_pairs': 2}  # rope")
