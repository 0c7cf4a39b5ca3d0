"""A region's text to MLIR: exported again in one form, imported by torch-mlir, its arguments named as in the text.

Dialects: linalg on tensors, or StableHLO. Weights are arguments, as they are everywhere; caches are arguments too, and what
becomes of them comes first among the results. A kernel may have a linalg form of its own, for compilers that are asked to be
fast: the importer sees an opaque op, which becomes a call of that form. Otherwise it is written in plain steps.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch_mlir import fx, ir
from torch_mlir.extras.fx_decomp_util import get_decomposition_table
from torch_mlir.passmanager import PassManager

from glmc import kernels
from glmc.errors import InternalError
from glmc.kernels.linear.mlir import Panels
from glmc.passes import lower
from glmc.program import Region
from glmc.region import Bound

MACHINE = "mlir"
_PIPELINES = {"linalg": "torch-backend-to-linalg-on-tensors-backend-pipeline",
              "stablehlo": "torch-backend-to-stablehlo-backend-pipeline"}
_VERIFIES = ",torch-verify-linalg-on-tensors-backend-contract"
"""A pass that knows no calls; that no op of torch is left is seen here."""
_TENSOR = re.compile(r"!torch\.vtensor<\[([^\]]*)\],(\w+)>")
_OPAQUE = re.compile(r'"torch\.glmc\.(\w+)"')


class Importing(nn.Module):
    """A region with the kernels of this machine. panels: of its weights those in panels, with the outputs they have."""

    def __init__(self, region: Region, panels: Mapping[str, int]) -> None:
        super().__init__()
        self.bound, self.panels = Bound(region, MACHINE), panels

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        named = zip(self.bound.region.inputs, inputs, strict=True)
        return self.bound(*(Panels(t, self.panels[name]) if name in self.panels else t for (name, _, _), t in named))


def text_of(region: Region, form: str, bounds: lower.Bounds, panels: Mapping[str, tuple[int, ...]], dialect: str = "linalg",
            own: bool = False) -> str:
    """The module with one function, called as the region. panels: weight -> the shape in which it is kept, if in panels.
    own: whether kernels are written in their own linalg forms.

    Raises InternalError with the importer's words.
    """
    rows = {name: int(spec.shape[0]) for name, _, spec in region.inputs if name in panels}
    exported, _ = lower.export(region, form, bounds, Importing(region, rows), panels)
    homes = {name: kernels.load(*home) for name, home in _HOMES.items()}  # which registers the ops
    plain = {getattr(torch.ops.glmc, name).default: home.plain for name, home in homes.items()
             if not (own and hasattr(home, "linalg"))}
    exported = exported.run_decompositions(get_decomposition_table() | plain)
    module = fx.export_and_import(exported, output_type="raw", func_name=region.name, decomposition_table={})
    forms = _call_forms(module)
    for pipeline in ("torchdynamo-export-to-torch-backend-pipeline", _PIPELINES[dialect]):
        _run(module, pipeline)
    text = _named(str(module), region, forms)
    if left := sorted(set(re.findall(r"\btorch(?:_c)?\.[\w.]+", text))):
        raise InternalError("torch-mlir cannot import a region", found=", ".join(left))
    return text


def _run(module: ir.Module, pipeline: str) -> None:
    """Raises InternalError with what the passes say."""
    said: list[str] = []

    def hear(diagnostic: Any) -> bool:
        said.append(str(diagnostic))
        return True

    with module.context as context:
        context.emit_error_diagnostics = True
        handler = context.attach_diagnostic_handler(hear)
        try:
            passes = PassManager.parse(f"builtin.module({pipeline})")
            if _VERIFIES in str(passes):
                passes = PassManager.parse(str(passes).replace(_VERIFIES, ""))
            passes.run(module.operation)
        except ir.MLIRError as fault:
            raise InternalError("torch-mlir cannot import a region", found="; ".join(said) or str(fault)) from fault
        finally:
            handler.detach()


def _call_forms(module: Any) -> dict[str, str]:
    """Replace opaque ops of ours by calls; returns the functions that are called, name -> text in linalg."""
    forms: dict[str, str] = {}
    with module.context:  # loads the dialect of casts between torch's tensors and others
        _run(ir.Module.parse("module {}"), "torch-func-backend-type-conversion")
    with module.context, ir.Location.unknown():
        for op in list(module.body.operations[0].regions[0].blocks[0].operations):
            found = _OPAQUE.fullmatch(str(op.attributes["name"])) if op.operation.name == "torch.operator" else None
            if found is None:
                continue
            tensors = [o for o in op.operands if _TENSOR.fullmatch(str(o.type))]
            numbers = [ir.IntegerAttr(o.owner.attributes["value"]).value for o in op.operands if str(o.type) == "!torch.int"]
            types, out = [_builtin(t.type) for t in tensors], _builtin(op.results[0].type)
            name, form = kernels.load(*_HOMES[found[1]]).linalg(types, out, *numbers)
            if name not in forms:
                forms[name] = form
                arguments = ", ".join(types)
                module.body.append(ir.Operation.parse(f"func.func private @{name}({arguments}) -> {out}"))
            with ir.InsertionPoint(op):
                given = [ir.Operation.create("torch_c.to_builtin_tensor", [ir.Type.parse(kind)], [tensor]).result
                         for tensor, kind in zip(tensors, types, strict=True)]
                made = ir.Operation.create("func.call", [ir.Type.parse(out)], given,
                                           attributes={"callee": ir.FlatSymbolRefAttr.get(name)})
                back = ir.Operation.create("torch_c.from_builtin_tensor", [op.results[0].type], [made.result])
            op.results[0].replace_all_uses_with(back.result)
            op.operation.erase()
    return forms


_HOMES = {"linear_panels": ("linear", MACHINE), "products": ("attention", MACHINE),
          "chosen_products": ("moe_experts", MACHINE), "best_slots": ("lightning_indexer", MACHINE)}
"""Opaque op -> the kernel file that has its linalg form, if it has one, and its plain steps."""


def _builtin(kind: Any) -> str:
    """`!torch.vtensor<[1,?],f32>` -> `tensor<1x?xf32>`."""
    found = _TENSOR.fullmatch(str(kind))
    if found is None:
        raise InternalError("a kernel's own form takes tensors", found=str(kind))
    return f"tensor<{''.join(f'{size}x' for size in found[1].split(',') if size)}{found[2].removeprefix('s')}>"


def _named(text: str, region: Region, forms: dict[str, str]) -> str:
    """The module's text, arguments under the region's names, and the functions in linalg where they were declared."""
    names = [name for name, _, _ in region.inputs]
    text = re.sub(r"%arg(\d+)\b", lambda m: f"%{names[int(m[1])]}" if int(m[1]) < len(names) else m[0], text)
    return re.sub(r"func\.func private @(\w+)\(.*", lambda m: forms[m[1]].replace("\n", "\n  "), text)
