"""The aten steps of a region's text in ONNX: a closed table. What is not in it no region of target `onnx` may hold.

Each entry takes the builder and the step's arguments: values of onnx_ir, whole numbers, lists of them. A size that moves is a
value int64 [1].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from glmc.errors import InternalError
from glmc.kernels.onnx import fixed, kind, resized, sizes, transposed

Value = Any
_END = 1 << 62


def _dim(x: Value, dim: int) -> int:
    return dim % len(sizes(x))


def shape(op: Any, dims: Sequence[Any]) -> Any:
    """Sizes as what Reshape and Expand take: whole numbers as they are, with sizes that move joined to one tensor."""
    if all(isinstance(dim, int) for dim in dims):
        return list(dims)
    return op.Concat(*([dim] if isinstance(dim, int) else dim for dim in dims), axis=0)


def size(op: Any, x: Value, dim: int) -> Any:
    """A dim: a whole number, or read from the function's input that has it, whole numbers first, so that layers share it."""
    found = x.shape[_dim(x, dim)]
    if isinstance(found, int):
        return found
    inputs = sorted(op.builder.root.graph.inputs, key=lambda given: given.dtype.is_floating_point())
    own = x, _dim(x, dim)
    given, at = next(((given, at) for given in inputs for at, other in enumerate(given.shape) if other == found), own)
    return op.Shape(given, start=at, end=at + 1)


def _slice(op: Any, x: Value, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Value:
    whole = sizes(x)[dim]
    if not start and step == 1 and (end is None or end >= (_END if whole is None else whole)):
        return x
    out = op.Slice(x, [start or 0], [_END if end is None else min(end, _END)], [dim], [step])
    if whole is not None:
        dims = list(x.shape)
        dims[dim] = len(range(*slice(start, end, step).indices(whole)))
        resized(out, dims)
    return out


def _flatten(op: Any, x: Value, start: int = 0, end: int = -1) -> Value:
    first, last, rank = _dim(x, start), _dim(x, end), len(sizes(x))
    kept = [size(op, x, d) for d in range(last + 1, rank)]
    return op.Reshape(x, shape(op, [*[0] * first, -1, *kept]))


def _unflatten(op: Any, x: Value, dim: int, into: Sequence[int]) -> Value:
    at, rank = _dim(x, dim), len(sizes(x))
    kept = [size(op, x, d) for d in range(at + 1, rank)]
    return op.Reshape(x, shape(op, [*[0] * at, *into, *kept]))


def _view(op: Any, x: Value, dims: Sequence[Any]) -> Value:
    return op.Reshape(x, shape(op, dims))


def _linear(op: Any, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """As Gemm, which reads the matrix as it lies; rows of all but the last dim are one for it."""
    rank = len(sizes(x))
    flat = x if rank == 2 else op.Reshape(x, [-1, fixed(weight, 1)])
    out = op.Gemm(flat, weight, *([] if bias is None else [bias]), transB=1)
    if rank == 2:
        return out
    out = op.Reshape(out, shape(op, [*(size(op, x, dim) for dim in range(rank - 1)), fixed(weight, 0)]))
    return resized(out, [*list(x.shape)[:-1], fixed(weight, 0)])


def _embedding(op: Any, weight: Value, ids: Value, padding: int = -1) -> Value:
    return op.Gather(weight, ids, axis=0)


def _index_put(op: Any, x: Value, indices: Sequence[Value], values: Value) -> Value:
    """x[rows, slots] = values, of rows [B, 1] and slots [B, S]."""
    if len(indices) != 2 or any(index is None or len(sizes(index)) != 2 for index in indices):
        raise InternalError("a write is none of slots into rows", found=len(indices))
    rows, slots = indices
    whole = op.Expand(rows, op.Shape(slots))
    return op.ScatterND(x, op.Concat(op.Unsqueeze(whole, [-1]), op.Unsqueeze(slots, [-1]), axis=-1), values)


def _cat(op: Any, parts: Sequence[Value], dim: int = 0) -> Value:
    return op.Concat(*parts, axis=dim)


def _stack(op: Any, parts: Sequence[Value], dim: int = 0) -> Value:
    at = dim % (len(sizes(parts[0])) + 1)
    return op.Concat(*(op.Unsqueeze(part, [at]) for part in parts), axis=at)


def _unbind(op: Any, x: Value, dim: int = 0) -> list[Value]:
    return [op.Gather(x, number, axis=_dim(x, dim)) for number in range(fixed(x, dim))]


def _chunk(op: Any, x: Value, count: int, dim: int = 0) -> list[Value]:
    whole = fixed(x, dim)
    each = -(-whole // count)
    return [_slice(op, x, dim, begin, min(begin + each, whole)) for begin in range(0, whole, each)]


def _arange(op: Any, end: Any) -> Value:
    return op.Range(0, end if isinstance(end, int) else op.Squeeze(end, [0]), 1)


def _to(op: Any, x: Value, dtype: Any, *rest: Any) -> Value:
    return op.Cast(x, to=kind(str(dtype).removeprefix("torch.")))


def _binary(name: str) -> Callable:
    return lambda op, x, other: getattr(op, name)(x, other)


def _unary(name: str) -> Callable:
    return lambda op, x: getattr(op, name)(x)


def _same(op: Any, x: Value, *rest: Any, **more: Any) -> Value:
    return x


TABLE: dict[str, Callable] = {
    "aten.add.Tensor": _binary("Add"), "aten.sub.Tensor": _binary("Sub"), "aten.mul.Tensor": _binary("Mul"),
    "aten.div.Tensor": _binary("Div"), "aten.le.Tensor": _binary("LessOrEqual"), "aten.matmul.default": _binary("MatMul"),
    "aten.neg.default": _unary("Neg"), "aten.sigmoid.default": _unary("Sigmoid"), "aten.relu.default": _unary("Relu"),
    "aten.cos.default": _unary("Cos"), "aten.sin.default": _unary("Sin"),
    "aten.silu.default": lambda op, x: op.Div(x, op.Add(op.Exp(op.Neg(x)), 1.0)),
    "aten.rsqrt.default": lambda op, x: op.Reciprocal(op.Sqrt(x)),
    "aten.pow.Tensor_Scalar": lambda op, x, power: op.Pow(x, float(power)),
    "aten.mean.dim": lambda op, x, dims, keep=False: op.ReduceMean(x, list(dims), keepdims=int(keep)),
    "aten.to.dtype": _to,
    "aten.contiguous.default": _same, "aten.clone.default": _same, "aten.alias.default": _same, "aten.detach.default": _same,
    "aten.unsqueeze.default": lambda op, x, dim: op.Unsqueeze(x, [dim]),
    "aten.squeeze.dim": lambda op, x, dim: op.Squeeze(x, [dim]),
    "aten.transpose.int": lambda op, x, first, second: transposed(op, x, _dim(x, first), _dim(x, second)),
    "aten.slice.Tensor": lambda op, x, dim=0, start=None, end=None, step=1: _slice(op, x, _dim(x, dim), start, end, step),
    "aten.select.int": lambda op, x, dim, number: op.Gather(x, number, axis=_dim(x, dim)),
    "aten.flatten.using_ints": _flatten, "aten.unflatten.int": _unflatten, "aten.view.default": _view,
    "aten.reshape.default": _view, "aten.linear.default": _linear, "aten.embedding.default": _embedding,
    "aten.index_put_.default": _index_put, "aten.cat.default": _cat, "aten.stack.default": _stack,
    "aten.unbind.int": _unbind, "aten.chunk.default": _chunk, "aten.arange.default": _arange,
    "aten.sym_size.int": size,
    "operator.getitem": lambda op, x, number: x[number],
    "operator.add": _binary("Add"), "operator.sub": _binary("Sub"), "operator.mul": _binary("Mul"),
    "operator.floordiv": _binary("Div"),
}
"""Name in a region's text -> how it is written."""
