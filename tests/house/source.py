"""The source under law: which files there are, what each is called when imported, and what it imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAPPED = {"passes": "glmc.passes", "runtime": "glmc.runtime"}
"""Folders at the top of the checkout that are imported under another name (pyproject.toml, package-dir)."""

PACKAGE_FOLDERS = ("glmc", "passes", "runtime")


def python_files(*folders: str) -> list[str]:
    """Every .py file under the folders, as sorted paths relative to the checkout."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def text(path: str) -> str:
    """The text of a file named relative to the checkout."""
    return (ROOT / path).read_text(encoding="utf-8")


def module_name(path: str) -> str:
    """The name a file is imported by: passes/match.py is glmc.passes.match, glmc/cli/__init__.py is glmc.cli."""
    parts = list(Path(path).with_suffix("").parts)
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join([MAPPED.get(parts[0], parts[0]), *parts[1:]])


def dotted(node: ast.AST) -> str | None:
    """`a.b.c` for the expression a.b.c, None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else None
    return None


def leading_text(node: ast.expr) -> str | None:
    """The text a string expression surely starts with: all of a literal, the part of an f-string before its hole."""
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything a file imports: statements at any depth, and import_module with a text.

    `from a import b` gives `a.b`, since b may be a module; whoever judges compares by prefix.
    """
    name = module_name(path)
    package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join(part for part in (".".join(above), node.module or "") if part)
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and (dotted(node.func) or "").split(".")[-1] in ("import_module", "__import__"):
            if node.args and (prefix := leading_text(node.args[0])):
                yield node.lineno, prefix.rstrip(".")


def within(name: str, *prefixes: str) -> bool:
    """True when a dotted name is one of the prefixes or lies below one."""
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)
