"""What the source never does: hide a fault, run data as code, check input with assert, name somebody's folders."""

from __future__ import annotations

import ast
import re

import pytest
from house.source import PACKAGE_FOLDERS, dotted, imported, python_files, text, within

FILES = python_files(*PACKAGE_FOLDERS)
EXAMPLES = python_files("examples")

CODE_IN_DATA = ("pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve",
                "torch.load", "torch.save", "torch.export.load", "torch.export.save", "torch.jit.load",
                "torch.distributed.broadcast_object_list", "torch.distributed.all_gather_object",
                "torch.distributed.gather_object", "torch.distributed.scatter_object_list")
"""Each reads or writes a pickle, or data that can run code; object collectives send pickles."""

TOO_WIDE = {"Exception", "BaseException", "ImportError", "ModuleNotFoundError"}
ABSOLUTE = re.compile(r"""(?<![\w.:}/])/(work|root|tmp|home)\b""")


def caught(handler: ast.ExceptHandler) -> set[str]:
    """The last parts of the names of the exceptions a handler catches."""
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return {(dotted(kind) or "").split(".")[-1] for kind in kinds if kind is not None}


def hidden_faults(path: str, source: str) -> list[str]:
    """Handlers that let a fault pass unsaid."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            empty = all(isinstance(s, ast.Pass) or (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                        for s in node.body)
            if node.type is None:
                faults.append(f"{path}:{node.lineno}: a bare except catches even Ctrl-C: name the exception")
            elif empty:
                faults.append(f"{path}:{node.lineno}: an empty handler hides the fault: answer it or let it pass")
            elif caught(node) & {"ImportError", "ModuleNotFoundError"} and not any(
                    isinstance(inner, ast.Raise) for s in node.body for inner in ast.walk(s)):
                faults.append(f"{path}:{node.lineno}: a swallowed ImportError: raise a class of glmc.errors, or ask "
                              "importlib.util.find_spec and state the refusal")
        elif isinstance(node, ast.Call) and (dotted(node.func) or "").split(".")[-1] == "suppress" and any(
                (dotted(kind) or "").split(".")[-1] in TOO_WIDE for kind in node.args):
            faults.append(f"{path}:{node.lineno}: suppresses too much: name the one exception that is harmless")
    return faults


def data_as_code(path: str, source: str) -> list[str]:
    """eval, exec, and whatever reads or writes pickles, under whichever name it was imported."""
    tree, faults, alias = ast.parse(source), [], {}
    for line, name in imported(path, source):
        if within(name, *CODE_IN_DATA):
            faults.append(f"{path}:{line}: {name} can run code from data: use JSON or safetensors")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            alias.update({a.asname: a.name for a in node.names if a.asname})
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            alias.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        first, _, rest = (dotted(node.func) or "").partition(".")
        name = alias.get(first, first) + (f".{rest}" if rest else "")
        if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
            faults.append(f"{path}:{node.lineno}: {name} runs text as code: parse it")
        elif within(name, *CODE_IN_DATA) and rest:
            faults.append(f"{path}:{node.lineno}: {name} can run code from data: use JSON or safetensors")
        if any(k.arg == "allow_pickle" and not (isinstance(k.value, ast.Constant) and k.value.value is False)
               for k in node.keywords):
            faults.append(f"{path}:{node.lineno}: allow_pickle can run code from data: use safetensors")
    return faults


def asserts(path: str, source: str) -> list[str]:
    """assert statements: `python -O` removes them, and they carry none of the facts an error must carry."""
    return [f"{path}:{node.lineno}: raise a class of glmc.errors instead of assert (InternalError for our own bug)"
            for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]


def absolute_paths(path: str, source: str) -> list[str]:
    """Absolute paths of one machine, in code or comments."""
    return [f"{path}:{number}: an absolute path of one machine: take it from the caller, or use tempfile"
            for number, line in enumerate(source.splitlines(), 1) if ABSOLUTE.search(line)]


@pytest.mark.parametrize("law", [hidden_faults, data_as_code, asserts, absolute_paths])
@pytest.mark.parametrize("path", FILES)
def test_the_source_keeps_the_law(path, law):
    faults = law(path, text(path))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("law", [hidden_faults, data_as_code, absolute_paths])
@pytest.mark.parametrize("path", EXAMPLES)
def test_the_examples_keep_the_law(path, law):
    faults = law(path, text(path))
    assert not faults, "\n".join(faults)


PLANTED = [
    (hidden_faults, "try:\n    f()\nexcept:\n    raise"),
    (hidden_faults, "try:\n    f()\nexcept ValueError:\n    pass"),
    (hidden_faults, "try:\n    f()\nexcept ValueError:\n    ..."),
    (hidden_faults, "try:\n    import x\nexcept ImportError:\n    x = None"),
    (hidden_faults, "try:\n    import x\nexcept (OSError, ModuleNotFoundError):\n    x = None"),
    (hidden_faults, "with contextlib.suppress(Exception):\n    f()"),
    (data_as_code, "import pickle"),
    (data_as_code, "from marshal import loads"),
    (data_as_code, "eval('1')"),
    (data_as_code, "exec(text)"),
    (data_as_code, "import torch as t\nt.load(path)"),
    (data_as_code, "from torch import save"),
    (data_as_code, "import torch\ntorch.export.load(path)"),
    (data_as_code, "from torch import export\nexport.save(program, path)"),
    (data_as_code, "from torch import distributed as dist\ndist.broadcast_object_list(x)"),
    (data_as_code, "import numpy\nnumpy.load(path, allow_pickle=True)"),
    (asserts, "def f(x):\n    assert x > 0"),
    (absolute_paths, "path = '/tmp/x'"),
    (absolute_paths, "# see /root/notes"),
    (absolute_paths, "path = f'/work/{name}'"),
]


@pytest.mark.parametrize(("law", "source"), PLANTED)
def test_a_planted_violation_is_found(law, source):
    assert law("glmc/x.py", source)


@pytest.mark.parametrize(("law", "source"), [
    (hidden_faults, "try:\n    f()\nexcept ImportError as fault:\n    raise Missing('x') from fault"),
    (hidden_faults, "with contextlib.suppress(FileNotFoundError):\n    f()"),
    (data_as_code, "model.eval()\nsession.load(path)\nfrom glmc import load\nload(path)"),
    (data_as_code, "from torch.export import export\nexport(module)"),
    (absolute_paths, "path = folder / 'root' / 'tmp'\nurl = 'a.b/home'"),
])
def test_lawful_source_is_left_alone(law, source):
    assert not law("glmc/x.py", source)
