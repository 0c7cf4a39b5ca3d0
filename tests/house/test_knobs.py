"""Every GLMC_ variable is declared in knobs.py, read through knobs.get, and read somewhere."""

from __future__ import annotations

import ast
import re

import pytest
from house.source import PACKAGE_FOLDERS, dotted, python_files, text

from glmc.knobs import KNOBS

FILES = [path for path in python_files(*PACKAGE_FOLDERS) if path != "glmc/knobs.py"]
VARIABLE = re.compile(r"\bGLMC_[A-Z0-9_]+")



def undeclared(path: str, source: str, declared: set[str]) -> list[str]:
    """GLMC_ variables that a file names, in a message or in code, and knobs.py does not."""
    return [f"{path}: {name} is no knob; declare it in glmc/knobs.py"
            for name in sorted(set(VARIABLE.findall(source)) - declared)]


def read_past_knobs(path: str, source: str) -> list[str]:
    """Reads of a GLMC_ variable from the environment that go past glmc.knobs.get and so past its checks."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            owner, keys = dotted(node.func) or "", node.args[:1]
        elif isinstance(node, ast.Subscript):
            owner, keys = dotted(node.value) or "", [node.slice]
        else:
            continue
        if re.search(r"\b(environ|getenv)\b", owner) and any(
                isinstance(key, ast.Constant) and VARIABLE.match(str(key.value)) for key in keys):
            faults.append(f"{path}:{node.lineno}: read the variable with glmc.knobs.get")
    return faults


def read(source: str) -> set[str]:
    """The knobs a file reads: the literal first arguments of `knobs.get` and of a bare `get`."""
    return {node.args[0].value for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call) and (dotted(node.func) or "").split(".")[-2:] in (["knobs", "get"], ["get"])
            and node.args and isinstance(node.args[0], ast.Constant)}


@pytest.mark.parametrize("path", FILES)
def test_a_variable_is_declared(path):
    faults = undeclared(path, text(path), set(KNOBS))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", FILES)
def test_a_variable_is_read_through_its_knob(path):
    faults = read_past_knobs(path, text(path))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_is_read_somewhere(name):
    assert any(name in read(text(path)) for path in FILES), \
        f"nothing reads {name}: read it with knobs.get({name!r}) or remove it from glmc/knobs.py"


@pytest.mark.parametrize("source", ["hint = 'set GLMC_SPEED=9'", "# GLMC_SPEED", "knobs.get('GLMC_SPEED')"])
def test_an_undeclared_variable_is_found(source):
    assert undeclared("glmc/x.py", source, {"GLMC_SHOW"})
    assert not undeclared("glmc/x.py", source, {"GLMC_SPEED"})


@pytest.mark.parametrize("source", [
    "os.environ['GLMC_SHOW']", "os.environ.get('GLMC_SHOW', '')", "os.getenv('GLMC_SHOW')", "environ.get('GLMC_SHOW')",
])
def test_a_read_past_the_knobs_is_found(source):
    assert read_past_knobs("glmc/x.py", source)
    assert not read_past_knobs("glmc/x.py", "knobs.get('GLMC_SHOW')")


def test_a_read_is_recognised():
    assert read("knobs.get('GLMC_SHOW')") == read("get('GLMC_SHOW')") == {"GLMC_SHOW"}
    assert read("os.environ.get('GLMC_SHOW')") == set()
