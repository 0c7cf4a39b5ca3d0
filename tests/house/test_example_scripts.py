"""Every example is a script with a main(), and some test runs it."""

from __future__ import annotations

import ast

import pytest
from house.source import imported, python_files, text

EXAMPLES = python_files("examples")


def quoted(paths: list[str], sources: list[str]) -> set[str]:
    """Examples that another one imports: parts of a script, not scripts."""
    names = {name.split(".")[0] for path, source in zip(paths, sources, strict=True)
             for _, name in imported(path, source)}
    names |= {name.split(".")[1] for path, source in zip(paths, sources, strict=True)
              for _, name in imported(path, source) if name.startswith("examples.")}
    return {path for path in paths if path.rpartition("/")[2].removesuffix(".py") in names}


def has_main(source: str) -> bool:
    return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in ast.parse(source).body)


def named_in(path: str, tests: list[str]) -> bool:
    """True when a test's code names the script, with or without its ending."""
    stem = path.rpartition("/")[2].removesuffix(".py")
    return any(isinstance(node, ast.Constant) and isinstance(node.value, str)
               and node.value.rpartition("/")[2].removesuffix(".py") == stem
               for source in tests for node in ast.walk(ast.parse(source)))


SCRIPTS = sorted(set(EXAMPLES) - quoted(EXAMPLES, [text(path) for path in EXAMPLES]))
TESTS = [path for path in python_files("tests") if not path.startswith("tests/house/")]


@pytest.mark.parametrize("path", SCRIPTS)
def test_an_example_has_main(path):
    assert has_main(text(path)), f"{path}: put the work into main() and call it under `if __name__ == \"__main__\"`"


@pytest.mark.parametrize("path", SCRIPTS)
def test_an_example_is_run_by_a_test(path):
    assert named_in(path, [text(test) for test in TESTS]), f"no test names {path}: run it in tests/test_examples.py"


def test_planted_violations_are_found():
    paths = ["examples/demo.py", "examples/words.py"]
    assert quoted(paths, ["import words", ""]) == {"examples/words.py"}
    assert quoted(paths, ["from examples.words import x", ""]) == {"examples/words.py"}
    assert has_main("def main():\n    return 0")
    assert not has_main("print(1)")
    assert named_in("examples/demo.py", ["run('demo.py')"])
    assert named_in("examples/demo.py", ["run('examples/demo')"])
    assert not named_in("examples/demo.py", ["run('other.py')  # demo.py"])
