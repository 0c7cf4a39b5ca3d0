"""Who may import whom: imports point one way, and vendor packages are named in one kind of file each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from house.source import PACKAGE_FOLDERS, imported, module_name, python_files, text, within

EVERYWHERE = ("glmc.errors", "glmc.knobs")
ARTIFACT = ("glmc.artifact", "glmc.artifact_linked", "glmc.artifact_load", "glmc.artifact_weights",
            "glmc.artifact_write")
PUBLIC = ("glmc.plan", "glmc.compile", "glmc.load", "glmc.__version__")

LAYERS: dict[str, tuple[str, ...]] = {
    "glmc.errors": (),
    "glmc.knobs": (),
    "glmc.target": (),
    "glmc.ledger": (),
    "glmc.graph": (),
    "glmc.spec": (),
    "glmc.program": ("glmc.spec", "glmc.target"),
    "glmc.placement": ("glmc.program",),
    "glmc.checkpoint": (*ARTIFACT, "glmc.checkpoint", "glmc.native"),
    **dict.fromkeys(ARTIFACT, (*ARTIFACT, "glmc.checkpoint")),
    "glmc.quick": (),
    "glmc.trace": ("glmc.graph", "glmc.quick"),
    "glmc.cache": (),
    "glmc.parts": ("glmc.published", "glmc.cache", "glmc.trace"),
    "glmc.axis_map": (),
    "glmc.axes_in_model": ("glmc.axis_map", "glmc.kernels"),
    "glmc.published": ("glmc.cache", "glmc.axes_in_model"),
    "glmc.families": ("glmc.families", "glmc.checkpoint", "glmc.target", "glmc.published", "glmc.axis_map"),
    "glmc.vision_parts": ("glmc.parts", "glmc.kernels", "glmc.families"),
    "glmc.dit_part": ("glmc.parts",),
    "glmc.picture_parts": ("glmc.parts", "glmc.dit_part"),
    "glmc.kernels": ("glmc.kernels",),
    "glmc.native": ("glmc.native", "glmc.program", "glmc.machine", "glmc.checkpoint.tensor_bytes"),
    "glmc.native.share": ("glmc.native", "glmc.placement", "glmc.kernels.dequantise"),
    "glmc.native.keep": ("glmc.native", "glmc.program", "glmc.checkpoint.tensor_bytes", "glmc.kernels.dequantise"),
    "glmc.passes.prove_native": ("glmc.native", "glmc.program", "glmc.region", "glmc.checkpoint.tensor_bytes",
                                  "glmc.passes.images"),
    "glmc.passes.prove_coded": ("glmc.native", "glmc.kernels", "glmc.passes.declare", "glmc.checkpoint.tensor_bytes"),
    "glmc.passes.prove_iree": ("glmc.iree", "glmc.native", "glmc.program", "glmc.region", "glmc.passes"),
    "glmc.passes.ahead": ("glmc.native", "glmc.program", "glmc.kernels", "glmc.region", "glmc.passes.lower"),
    "glmc.passes.fusions": ("glmc.passes.declare", "glmc.passes.fusions"),
    "glmc.passes": ("glmc.machine", "glmc.gpu", "glmc.region", "glmc.graph", "glmc.program", "glmc.placement", "glmc.target",
                    "glmc.kernels", "glmc.trace", "glmc.passes"),
    "glmc.iree": ("glmc.program",),
    "glmc.runtime": ("glmc.iree", "glmc.native", "glmc.region", "glmc.machine", "glmc.gpu", "glmc.program", "glmc.placement",
                     "glmc.artifact", "glmc.kernels", "glmc.target", "glmc.runtime"),
    "glmc.runtime.envelope": ("glmc.checkpoint.strict_json",),
    "glmc.runtime.supervise": ("glmc.runtime.rank_fault",),
    "glmc.runtime.share": ("glmc.artifact", "glmc.artifact_load", "glmc.checkpoint.tensor_bytes", "glmc.native",
                           "glmc.placement", "glmc.program", "glmc.runtime"),
    "glmc.runtime.media": ("glmc.checkpoint.regular_file", "glmc.runtime.json_object", "glmc.runtime.media"),
    "glmc.trail": (),
    "glmc.dynamo": ("glmc.trace", "glmc.passes"),
    "glmc.backend": ("glmc.dynamo", "glmc.sites", "glmc.passes", "glmc.ledger", "glmc.target", "glmc.trail"),
    "glmc.epilogue": ("glmc.program",),
    "glmc.region": ("glmc.epilogue", "glmc.program", "glmc.kernels"),
    "glmc.topology": ("glmc.program", "glmc.region", "glmc.target"),
    "glmc.forecast": ("glmc.program", "glmc.survey", "glmc.target", "glmc.tensor_parallel", "glmc.topology"),
    "glmc.machine": (),
    "glmc.gpu": ("glmc.target",),
    "glmc.sites": ("glmc.passes", "glmc.ledger", "glmc.trace", "glmc.trail"),
    "glmc.drawing": ("glmc.epilogue", "glmc.kernels", "glmc.graph", "glmc.native", "glmc.parts", "glmc.passes", "glmc.program",
                     "glmc.region", "glmc.target", "glmc.trace"),
    "glmc.survey": ("glmc.drawing", "glmc.native.keeps", "glmc.sites", "glmc.vision_parts", "glmc.dit_part",
                    "glmc.picture_parts", "glmc.parts", "glmc.axis_map",
                    "glmc.trace", "glmc.trail", "glmc.published", "glmc.families", "glmc.passes", "glmc.checkpoint",
                    "glmc.program", "glmc.ledger", "glmc.target"),
    "glmc.largest_media": ("glmc.native.tower", "glmc.runtime.media", "glmc.checkpoint", "glmc.families"),
    "glmc.planner": ("glmc.forecast", "glmc.largest_media",
                     "glmc.checkpoint.components", "glmc.runtime.media.settings", "glmc.native",
                     "glmc.program", "glmc.survey", "glmc.target", "glmc.ledger"),
    "glmc.build": ("glmc.largest_media", "glmc.native", "glmc", "glmc.families", "glmc.survey", "glmc.machine",
                   "glmc.published", "glmc.passes", "glmc.placement", "glmc.program", *ARTIFACT, "glmc.checkpoint",
                   "glmc.target", "glmc.tensor_parallel"),
    "glmc.tensor_parallel": ("glmc.native", "glmc.passes", "glmc.placement", "glmc.published", "glmc.survey"),
    "glmc.streamed": ("glmc.published", "glmc.checkpoint"),
    "glmc.divergence": ("glmc.program", "glmc.region", "glmc.streamed"),
    "glmc.trial": ("glmc.runtime",),
    "glmc.beside": ("glmc.native", "glmc.divergence", "glmc.streamed", "glmc.program", "glmc.runtime"),
    "glmc.beside_text": ("glmc.beside", "glmc.divergence", "glmc.streamed"),
    "glmc.against": ("glmc.trial", "glmc.beside", "glmc.beside_text", "glmc.divergence", "glmc.streamed", "glmc.runtime",
                     "glmc.artifact", "glmc.checkpoint", "glmc.families"),
    "glmc.bench": ("glmc.bench", "glmc.runtime", "glmc.artifact", "glmc.artifact_load", "glmc.native", "glmc.region",
                   "glmc.machine", "glmc.checkpoint", "glmc.html", "glmc.__version__"),
    "glmc.html": ("glmc.html",),
    "glmc.html.graph": ("glmc.html",),
    "glmc.html.steps": ("glmc.program",),
    "glmc.html.folded": ("glmc.program",),
    "glmc.html.region": ("glmc.html", "glmc.program"),
    "glmc.html.program": ("glmc.html", "glmc.program"),
    "glmc.cli.explain": ("glmc.cli", "glmc.target", "glmc.passes.declare", "glmc.passes.pattern"),
    "glmc.cli": ("glmc.native", "glmc.placement", "glmc.cli", "glmc.build", "glmc.bench", "glmc.epilogue", "glmc.html",
                 "glmc.planner",
                 "glmc.ledger", "glmc.runtime", "glmc.artifact", "glmc.artifact_linked", "glmc.against",
                 "glmc.checkpoint", "glmc.program", "glmc.target", "glmc.families", "glmc.machine", *PUBLIC),
    "glmc.__main__": ("glmc.cli",),
    "glmc": ("glmc.backend", "glmc.build", "glmc.planner", "glmc.runtime"),
}
"""Module or package -> what of glmc it may import besides EVERYWHERE. The longest matching name decides."""

OUTSIDE: dict[str, tuple[str, ...]] = {
    "glmc.errors": (),
    "glmc.knobs": (),
    "glmc.kernels": ("torch", "triton", "torch_npu", "onnx_ir"),
    "glmc.passes.fusions": ("torch",),
}
"""Packages of others that a layer may import; a layer that is not named here may import any."""

VENDORS = {"triton": "triton.py", "torch_npu": "npu.py", "torch_mlir": "mlir.py", "iree": "iree.py",
           **dict.fromkeys(("onnx", "onnx_ir", "onnxscript", "onnxruntime"), "onnx.py")}
"""A vendor's package -> the only name of file that may import it."""

NO_TRANSFORMERS = "glmc.runtime"
TRANSFORMERS_ANYWAY = "runtime/as_transformers.py"


def row(name: str, table: dict[str, tuple[str, ...]]) -> str | None:
    """The longest name in a table that a module is or lies below; `glmc` stands for glmc/__init__.py alone."""
    fits = [layer for layer in table if name == layer or (layer != "glmc" and within(name, layer))]
    return max(fits, key=len, default=None)


def ours(path: str, source: str) -> list[str]:
    """Imports of glmc by a file that its layer does not allow."""
    name = module_name(path)
    layer = row(name, LAYERS)
    if layer is None:
        return [f"{path}: {name} stands in no layer; give it a row in LAYERS of tests/house/test_layers.py"]
    allowed = (*EVERYWHERE, *LAYERS[layer])
    return [f"{path}:{line}: {layer} may not import {target}; it may import {', '.join(allowed)}"
            for line, target in imported(path, source)
            if within(target, "glmc", "passes", "runtime") and target not in ("glmc", "glmc.passes", "glmc.runtime")
            and not within(target, *allowed)]


def outside(path: str, source: str) -> list[str]:
    """Imports of other people's packages by a file that must do without them."""
    name, faults = module_name(path), []
    layer = row(name, OUTSIDE)
    for line, target in imported(path, source):
        top = target.split(".")[0]
        if top in VENDORS and Path(path).name != VENDORS[top]:
            faults.append(f"{path}:{line}: only a file called {VENDORS[top]} may import {top}")
        if top == "transformers" and within(name, NO_TRANSFORMERS) and path != TRANSFORMERS_ANYWAY:
            faults.append(f"{path}:{line}: the runtime runs without transformers; only {TRANSFORMERS_ANYWAY} is exempt")
        if layer and top != "glmc" and top not in sys.stdlib_module_names and top not in OUTSIDE[layer]:
            faults.append(f"{path}:{line}: {layer} may not import {top}")
    return faults


@pytest.mark.parametrize("path", python_files(*PACKAGE_FOLDERS))
def test_imports_point_one_way(path):
    faults = ours(path, text(path))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("path", python_files(*PACKAGE_FOLDERS))
def test_other_peoples_packages_stay_in_their_files(path):
    faults = outside(path, text(path))
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(("path", "source"), [
    ("runtime/session.py", "from glmc.passes import match"),
    ("runtime/session.py", "def f():\n    import glmc.families.glm4"),
    ("runtime/session.py", "from ..passes.match import find"),
    ("runtime/session.py", "from glmc import trace"),
    ("runtime/session.py", "import passes.match"),
    ("passes/match.py", "from importlib import import_module\nimport_module(f'glmc.families.{name}')"),
    ("passes/fusions/rope.py", "from glmc.kernels import rope"),
    ("glmc/cli/run.py", "from glmc.passes.match import match"),
    ("glmc/errors.py", "import glmc.target"),
    ("glmc/families/glm4.py", "import glmc.passes.declare"),
    ("glmc/novelty.py", "import os"),
])
def test_a_wrong_import_of_ours_is_found(path, source):
    assert len(ours(path, source)) == 1


@pytest.mark.parametrize(("path", "source"), [
    ("runtime/session.py", "import transformers"),
    ("glmc/kernels/rope/cpu.py", "import triton.language as tl"),
    ("runtime/steps.py", "import torch_npu"),
    ("passes/workers.py", "from torch_mlir import fx"),
    ("runtime/session.py", "from iree import runtime"),
    ("passes/fusions/rope.py", "import numpy"),
    ("glmc/errors.py", "import torch"),
])
def test_a_wrong_import_of_others_is_found(path, source):
    assert outside(path, source)


@pytest.mark.parametrize(("path", "source"), [
    ("runtime/as_transformers.py", "import transformers"),
    ("glmc/kernels/rope/triton.py", "import triton\nfrom glmc.errors import GlmcError"),
    ("runtime/session.py", "from . import steps\nfrom .sample import Sampler\nfrom glmc.artifact import Artifact"),
    ("passes/fusions/rope.py", "import math\nimport torch\nfrom glmc.passes.declare import Fusion"),
])
def test_a_right_import_is_left_alone(path, source):
    assert not ours(path, source) + outside(path, source)
