"""A program as one ONNX model: a function for each distinct region, and a graph that calls them with their weights.

Weights are no part of the model: each is told by where its bytes lie in the artefact's own weight files. Inputs are what the
program takes, the caches as they are before, and `rows`: which of the new tokens get logits. Outputs are the logits and the
caches as they are after, of the same shape, so that a runtime may write them in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from glmc.errors import InternalError
from glmc.kernels.onnx import IR_VERSION, OPSET, kind, value, vendor
from glmc.passes.onnx_region import check, function_of
from glmc.program import Program, Spec
from glmc.region import written

ROWS, LOGITS = "rows", "logits"
Places = Mapping[str, tuple[str, int, int]]
"""Weight -> the file that holds it, the first of its bytes there, and how many they are."""


def functions_of(program: Program, family: str) -> list[Any]:
    """Every region as a function. Raises UnsupportedTarget for an op that ONNX is not written for."""
    check(program)
    return [function_of(region, f"glmc.{family}") for region in program.regions.values()]


def model_of(program: Program, functions: list[Any], places: Places, version: str) -> bytes:
    """The model as a file's bytes. version: glmc's."""
    ir = vendor("onnx_ir")
    by_name = {function.name: function for function in functions}
    changed = {name: written(region) for name, region in program.regions.items()}
    graph = _Graph(program, places)
    for step in program.steps:
        if step.moves:
            raise InternalError("a program of one rank has no steps between regions", field=step.region)
        region = program.regions[step.region]
        takes = list(zip(step.inputs, region.inputs, strict=True))
        inputs = [graph.read(name, role, spec, step.rows == "last") for name, (_, role, spec) in takes]
        caches = [(name, spec) for name, (own, _, spec) in takes if own in changed[region.name]]
        outputs = [*(ir.Value(name=name) for name in step.outputs),
                   *(value(name.replace("cache:", "present."), spec.dtype, spec.shape) for name, spec in caches)]
        graph.nodes.append(ir.Node(by_name[region.name].domain, region.name, inputs, outputs=outputs))
        graph.values.update(zip([*step.outputs, *(name for name, _ in caches)], outputs, strict=True))
    spec = program.regions[program.steps[-1].region].outputs[0]
    logits = graph.values[program.logits]
    logits.name, logits.dtype, logits.shape = LOGITS, kind("float32"), ir.Shape(["B", "R", spec.shape[-1]])
    whole = ir.Graph(list(graph.inputs.values()), [logits, *(graph.values[name] for name in graph.caches)], nodes=graph.nodes,
                     initializers=list(graph.weights.values()), name="glmc",
                     opset_imports={"": OPSET, by_name[next(iter(by_name))].domain: 1})
    for node in whole:
        node.name = None
    model = ir.Model(whole, ir_version=IR_VERSION, producer_name="glmc", producer_version=version, functions=functions)
    told = ir.to_proto(model)
    del told.graph.value_info[:]  # of the weights, whose sizes stand beside their places
    return told.SerializeToString(deterministic=True)


class _Graph:
    """What the calls have made so far, by the program's names."""

    def __init__(self, program: Program, places: Places) -> None:
        self.places = places
        self.nodes: list[Any] = []
        self.inputs: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self.caches = list(dict.fromkeys(name for step in program.steps for name in step.inputs if name.startswith("cache:")))
        asked = {name: spec for step in program.steps
                 for name, (_, role, spec) in zip(step.inputs, program.regions[step.region].inputs, strict=True)
                 if role != "weight" and name.startswith(("input:", "cache:"))}
        for name in sorted(asked, key=lambda name: name.startswith("cache:")):
            if name != "input:slots":
                told = name.removeprefix("input:").replace("cache:", "past.")
                self.values[name] = self.inputs[told] = value(told, asked[name].dtype, asked[name].shape)
        self.inputs[ROWS] = value(ROWS, "int64", ["R"])
        if "input:slots" in asked:
            self.values["input:slots"] = self._slots(self.values[self.caches[0]])

    def read(self, name: str, role: str, spec: Spec, last: bool) -> Any:
        """What a step reads; of what has a row for each new token only the asked rows, where `last`."""
        if role == "weight":
            return self._weight(name.removeprefix("weight:"), spec)
        made = self.values[name]
        if not last or "S" not in spec.shape:
            return made
        at = spec.shape.index("S")
        chosen = vendor("onnx_ir").node("Gather", [made, self.inputs[ROWS]], {"axis": at})
        self.nodes.append(chosen)
        return chosen.outputs[0]

    def _weight(self, name: str, spec: Spec) -> Any:
        ir = vendor("onnx_ir")
        if name not in self.weights:
            file, offset, nbytes = self.places[name]
            made = self.weights[name] = value(name, spec.dtype, spec.shape)
            made.const_value = ir.ExternalTensor(file, offset, nbytes, made.dtype, shape=made.shape, name=name)
        return self.weights[name]

    def _slots(self, cache: Any) -> Any:
        """The numbers of a cache's slots."""
        ir = vendor("onnx_ir")
        begin, step = (self._constant(name, number) for name, number in (("zero", 0), ("one", 1)))
        count = ir.node("Shape", [cache], {"start": 1, "end": 2})
        flat = ir.node("Squeeze", [count.outputs[0]])
        slots = value("slots", "int64", ["L"])
        self.nodes += [count, flat, ir.node("Range", [begin, flat.outputs[0], step], outputs=[slots])]
        return slots

    def _constant(self, name: str, number: int) -> Any:
        ir = vendor("onnx_ir")
        node = ir.node("Constant", [], {"value_int": number})
        node.outputs[0].name = name
        self.nodes.append(node)
        return node.outputs[0]
