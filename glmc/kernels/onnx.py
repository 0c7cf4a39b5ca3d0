"""What the files `onnx.py` of all ops share: `emit` writes an op into a graph, `run` has ONNX Runtime do it alone, for proofs.

`emit(op, ...)` has the reference's signature behind `op`, onnxscript's builder of a graph; tensors are values of onnx_ir with
known ranks. The vendor's packages are imported when something is built or run, so that a model can be planned without them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from glmc.errors import InternalError, UnsupportedTarget

OPSET = 23
"""The first with RotaryEmbedding, RMSNormalization and Attention."""
IR_VERSION = 11
_FLOATS = (torch.float32,)


def vendor(package: str) -> Any:
    """The package, imported. Raises UnsupportedTarget that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as fault:
        raise UnsupportedTarget("a package of the target onnx is not installed", field=package, found=str(fault),
                                hint="pip install 'glmc[onnx]'") from fault


def only_float32(site: dict[str, Any], *names: str) -> str | None:
    """A refusal where one of these tensors is no float32."""
    wrong = [f"{name} is {str(site[name][0]).removeprefix('torch.')}" for name in names
             if name in site and site[name][0] not in _FLOATS]
    return f"ONNX Runtime's CPU kernels are float32: {', '.join(wrong)}" if wrong else None


def sizes(x: Any) -> tuple[int | None, ...]:
    """The dims of a value of onnx_ir, None where one moves. Raises InternalError where the rank is not known."""
    if x.shape is None:
        raise InternalError("the rank of a value is not known", field=x.name)
    return tuple(dim if isinstance(dim, int) else None for dim in x.shape)


def fixed(x: Any, dim: int) -> int:
    """A dim that does not move. Raises InternalError for one that does."""
    size = sizes(x)[dim]
    if size is None:
        raise InternalError("a size that must be known is not", field=x.name, found=str(x.shape))
    return size


def transposed(op: Any, x: Any, first: int, second: int) -> Any:
    """`x` with two dims exchanged; of what was exchanged before, the original."""
    order = list(range(len(sizes(x))))
    order[first], order[second] = order[second], order[first]
    made = x.producer()
    if made is not None and made.op_type == "Transpose" and list(made.attributes["perm"].as_ints()) == order:
        return made.inputs[0]
    return op.Transpose(x, perm=order)


def joined(op: Any, x: Any) -> Any:
    """[B, S, H, D] -> [B, S, H * D]; of what was parted before, the original."""
    made = x.producer()
    if made is not None and made.op_type == "Reshape" and len(sizes(made.inputs[0])) == 3:
        return made.inputs[0]
    return shaped(op.Reshape(x, [0, 0, -1]), x, fixed(x, 2) * fixed(x, 3))


def parted(op: Any, x: Any, heads: int, width: int) -> Any:
    """[B, S, H * D] -> [B, S, H, D]."""
    return shaped(op.Reshape(x, [0, 0, heads, width]), x, heads, width)


def shaped(made: Any, like: Any, *last: int) -> Any:
    """`made`, of which it is now known that its first two dims are those of `like`; shape inference loses them."""
    return resized(made, [*list(like.shape)[:2], *last])


def resized(made: Any, dims: Sequence[Any]) -> Any:
    """`made`, of which it is now known that it has these dims."""
    made.shape = vendor("onnx_ir").Shape(dims)
    return made


def subgraph(op: Any, body: Callable, name: str, inputs: Sequence[Any] = (), outputs: Sequence[Any] | None = None) -> Any:
    """A branch or the body of a loop: `body(inside, *inputs)` writes it, and may read what is around it.

    outputs: values with the types of its results; None for one of float32.
    """
    made = op.builder.subgraph(body, inputs, outputs or [vendor("onnx_ir").val(name, kind("float32"))], name=name)
    for inner in (*made.inputs, *(inner for node in made for inner in node.outputs)):
        inner.name = f"{name}_{op.builder.graph.num_nodes()}.{inner.name}"  # no name in a function stands twice
    return made


def tensor(numbers: Any) -> Any:
    """A constant of whole numbers."""
    return vendor("onnx_ir").tensor(numbers, dtype=kind("int64"))


def kind(dtype: str) -> Any:
    """A dtype by torch's name of it."""
    return vendor("onnx_ir").DataType["FLOAT" if dtype == "float32" else dtype.upper()]


def value(name: str, dtype: str, dims: Sequence[int | str]) -> Any:
    """A value of this dtype, by torch's name, and sizes, a letter for one that moves."""
    return vendor("onnx_ir").val(name, kind(dtype), dims)


def alone(emit: Callable) -> Callable:
    """`run` of an op: `emit` as the one thing in a graph, run by ONNX Runtime on the CPU with torch's tensors."""

    def run(*tensors: torch.Tensor | None, **scalars: Any) -> Any:
        values = [None if t is None else _like(f"x{i}", t) for i, t in enumerate(tensors)]
        several = False

        def body(op: Any, *given: Any) -> list[Any]:
            nonlocal several
            made = emit(op, *given, **scalars)
            several = isinstance(made, tuple)
            return list(made) if several else [made]

        results = call(function("glmc.alone", "alone", values, body), [t for t in tensors if t is not None])
        return tuple(results) if several else results[0]

    return run


def function(domain: str, name: str, inputs: Sequence[Any], body: Callable) -> Any:
    """An onnx_ir function of `inputs`, values or None; `body(op, *inputs)` writes it and returns its outputs.

    Equal steps are one, and steps that nobody reads are left out.
    """
    ir, common = vendor("onnx_ir"), importlib.import_module("onnx_ir.passes.common")
    built = vendor("onnxscript").build_function(body, inputs, domain=domain, name=name, opset_imports={"": OPSET})
    whole = ir.Model(built.graph, ir_version=IR_VERSION)
    for tidy in (common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()):
        tidy(whole)
    for node in ir.traversal.RecursiveGraphIterator(built.graph):
        node.name = None
        node.metadata_props.clear()
        for made in node.outputs:
            made.type = made.shape = None
    return built


def call(built: Any, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A function run once by ONNX Runtime on the CPU, on one thread. tensors: its present inputs in order."""
    ir, runtime = vendor("onnx_ir"), vendor("onnxruntime")
    given = [_like(f"given_{i}", t) for i, t in enumerate(tensors)]
    node = ir.Node(built.domain, built.name, given, num_outputs=len(built.outputs))
    graph = ir.Graph(given, node.outputs, nodes=[node], name="once", opset_imports={"": OPSET, built.domain: 1})
    model = ir.to_proto(ir.Model(graph, ir_version=IR_VERSION, functions=[built]))
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    made = session.run(None, {one.name: t.contiguous().numpy() for one, t in zip(given, tensors, strict=True)})
    return [torch.from_numpy(array.copy()) for array in made]


def _like(name: str, t: torch.Tensor) -> Any:
    """A value with a tensor's dtype and sizes; the first of many moves, as rows do."""
    return value(name, str(t.dtype).removeprefix("torch."), ["B", *t.shape[1:]] if t.dim() > 2 else list(t.shape))
