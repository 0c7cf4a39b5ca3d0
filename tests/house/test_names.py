"""A module is named for what it knows, and its first line says what that is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from house.source import PACKAGE_FOLDERS, python_files, text

FILES = python_files(*PACKAGE_FOLDERS, "tests", "examples")
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "base", "shared", "stuff"}


def meaningless(path: str) -> str | None:
    """What is wrong with the name of a file or of its folders, or None. `test_utils.py` counts as `utils`."""
    for part in Path(path).with_suffix("").parts:
        if part.removeprefix("test_").lower() in EMPTY_NAMES:
            return f"{path}: `{part}` says nothing; name it for what it knows"
    return None


def undocumented(path: str, source: str) -> str | None:
    """What is wrong with the docstring of a module, or None. An empty __init__.py needs none."""
    if not source.strip() and path.endswith("__init__.py"):
        return None
    first = (ast.get_docstring(ast.parse(source)) or "").split("\n")[0].strip()
    return None if first else f"{path}: begin the module with a docstring whose first line is its idea in a sentence"


@pytest.mark.parametrize("path", FILES)
def test_a_name_says_something(path):
    fault = meaningless(path)
    assert not fault, fault


@pytest.mark.parametrize("path", FILES)
def test_a_module_says_what_it_is(path):
    fault = undocumented(path, text(path))
    assert not fault, fault


@pytest.mark.parametrize("path", ["glmc/utils.py", "runtime/common/x.py", "glmc/base.py", "tests/test_misc.py"])
def test_an_empty_name_is_found(path):
    assert meaningless(path)


@pytest.mark.parametrize("source", ["import os\n", '"""\n"""\n', "# a comment\nx = 'text'\n"])
def test_a_missing_docstring_is_found(source):
    assert undocumented("glmc/x.py", source)
    assert undocumented("glmc/__init__.py", source)


def test_an_empty_init_is_left_alone():
    assert not undocumented("glmc/cli/__init__.py", "")
    assert undocumented("glmc/trace.py", "")
