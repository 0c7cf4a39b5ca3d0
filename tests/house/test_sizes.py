"""No file outgrows what one can hold in the head, and the whole has a budget."""

from __future__ import annotations

import tomllib

import pytest
from house.source import PACKAGE_FOLDERS, python_files, text

LIMITS = (("passes/fusions/", 80), ("glmc/families/", 250), ("glmc/kernels/", 500), ("", 300))
"""Start of a path -> the most lines; the first that fits decides."""

FILES = python_files(*PACKAGE_FOLDERS, "tests", "examples")


def lines(source: str) -> int:
    return len(source.splitlines())


def oversize(path: str, source: str) -> str | None:
    """What is wrong with the length of a file, or None."""
    limit = next(most for start, most in LIMITS if path.startswith(start))
    if lines(source) <= limit:
        return None
    return f"{path} has {lines(source)} lines, {limit} are allowed: move one of its ideas to a file of its own"


@pytest.mark.parametrize("path", FILES)
def test_a_file_is_small(path):
    fault = oversize(path, text(path))
    assert not fault, fault


def test_the_whole_stays_within_its_budget():
    budget = tomllib.loads(text("pyproject.toml"))["tool"]["glmc"]["lines"]
    total = sum(lines(text(path)) for path in python_files(*PACKAGE_FOLDERS))
    assert total <= budget, (f"glmc, passes and runtime have {total} lines, the budget is {budget}: remove something, "
                             "or raise `lines` under [tool.glmc] in pyproject.toml in a commit that says why")


@pytest.mark.parametrize(("path", "most"), [
    ("runtime/session.py", 300), ("glmc/kernels/rope/triton.py", 500), ("glmc/families/glm4.py", 250),
    ("passes/fusions/rope.py", 80), ("tests/test_build.py", 300), ("examples/demo.py", 300),
])
def test_one_line_too_many_is_found(path, most):
    assert not oversize(path, "x\n" * most)
    assert oversize(path, "x\n" * (most + 1))


def test_the_files_are_found():
    assert {"glmc/errors.py", "passes/__init__.py", "tests/conftest.py"} <= set(FILES)
