"""`import glmc`, `glmc --help` and `glmc inspect` are instant: the modules on their way import no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
from house.source import ROOT, module_name, python_files

HEAVY = ("torch", "transformers", "triton", "torch_npu", "torch_mlir", "iree")
LIGHT_FILES = ("glmc/__init__.py", "glmc/errors.py", "glmc/knobs.py", "glmc/target.py", "glmc/artifact.py",
               "glmc/ledger.py", "glmc/program.py", "glmc/checkpoint/strict_json.py",
               "glmc/checkpoint/safetensors_header.py", "glmc/checkpoint/folder.py",
               "glmc/checkpoint/recipe.py", "glmc/cli/main.py")
PRESENT = [path for path in LIGHT_FILES if (ROOT / path).exists()]
VERBS = [path for path in python_files("glmc/cli") if path not in LIGHT_FILES]


def heavy_after(code: str) -> list[str]:
    """The heavy packages that a fresh interpreter holds after running `code`."""
    report = f"\nimport sys\nprint(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"`{code}` fails in a fresh interpreter:\n{done.stderr}"
    return done.stdout.split()


@pytest.mark.parametrize("path", PRESENT + VERBS)
def test_importing_needs_no_torch(path):
    name = module_name(path)
    held = heavy_after(f"import {name}")
    assert not held, f"`import {name}` brings in {held}: import them inside the function that needs them"


def test_help_needs_no_torch():
    held = heavy_after("from typer.testing import CliRunner\nfrom glmc.cli.main import app\n"
                       "if CliRunner().invoke(app, ['--help']).exit_code: raise SystemExit('--help fails')")
    assert not held, f"`glmc --help` brings in {held}: import them inside the verb that needs them"


def test_a_heavy_import_is_found():
    planted = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')"
    assert heavy_after(planted) == ["torch"]
