"""A region's text as a function of tensors: each line becomes one call. Nothing in the text is evaluated as code.

Ops come from closed tables: the aten ops below, a few integer operators, and glmc's kernels for the machine at hand.
A new model that needs another op adds its name here; until then neither the compiler nor the runtime takes it.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Generator
from typing import Any

import torch

from glmc import epilogue, kernels
from glmc.errors import DamagedArtifact
from glmc.program import WRITES, Region

_OPERATORS = {name: getattr(operator, name) for name in ("getitem", "add", "sub", "mul", "floordiv", "mod", "neg")}
ATEN = frozenset("""
__and__ abs add add_ addmm alias all amax any arange argmax argmin argsort as_strided bitwise_and bitwise_not bitwise_or bmm
cat chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d conv3d copy_ cos cumsum detach diff div
div_ einsum embedding empty empty_like eq exp expand expand_as flatten floor_divide full full_like gather ge gelu grid_sampler
group_norm gt histc index index_add index_fill index_put index_put_ index_select isin layer_norm le linalg_vector_norm linear
log logical_and logical_not logical_or logsumexp lt masked_fill masked_fill_ matmul max maximum mean min minimum mm mul mul_
nan_to_num narrow ne neg new_empty new_ones new_zeros one_hot ones ones_like outer pad permute pow reciprocal relu remainder
repeat repeat_interleave reshape rms_norm roll rsqrt scaled_dot_product_attention scatter scatter_ scatter_add_ select
select_scatter sigmoid silu sin slice slice_scatter softmax softplus sort split split_with_sizes sqrt square squeeze stack sub
sum sym_size t tanh to topk transpose tril triu unbind unflatten unsqueeze upsample_nearest2d view where zeros zeros_like
""".split())
REPLACED = {machine: {"aten.linear.default": "glmc.linear"} for machine in ("triton", "mlir")}
"""Machine -> ops of a region's text that a kernel of the machine's own runs, wherever the region is bound for it."""
FACTORIES = {"aten.arange.default", "aten.arange.start", "aten.arange.start_step", "aten.zeros.default", "aten.full.default",
             "aten.empty.memory_format"}


class _Ref:
    """A value made by an earlier line or an input."""

    __slots__ = ("slot",)

    def __init__(self, slot: int) -> None:
        self.slot = slot


def resolve(name: str, machine: str) -> Callable:
    """The callable behind an op's name. Raises DamagedArtifact for a name outside the closed tables."""
    space, _, rest = name.partition(".")
    if space == "operator" and rest in _OPERATORS:
        return _OPERATORS[rest]
    if space == "glmc" and kernels.has(rest, machine):
        return kernels.load(rest, machine).run
    if space == "aten":
        packet, _, overload = rest.partition(".")
        found = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if overload and packet in ATEN and isinstance(found, torch._ops.OpOverload):
            return found
    raise DamagedArtifact("a region calls an op that is not known here", field=name)


class Bound:
    """A region bound to a machine's ops: call it with the inputs in order; returns the outputs in order.

    replace: further ops that a kernel runs, over the machine's REPLACED. by_line: every line by itself; without it products do
    what follows them where the machine's do, and `region` has the lines that run.
    """

    def __init__(self, region: Region, machine: str, device: str = "cpu", replace: dict[str, str] | None = None,
                 by_line: bool = False) -> None:
        self.region = region = epilogue.joined(region) if machine in epilogue.MACHINES and not by_line else region
        replaced = REPLACED.get(machine, {}) | (replace or {})
        slots = {name: i for i, (name, _, _) in enumerate(region.inputs)}
        self._lines: list[tuple[Callable, Any, dict[str, Any], int, tuple[int, ...]]] = []
        refs: dict[str, Any] = {name: _Ref(slot) for name, slot in slots.items()}
        parsed = [ast.parse(text).body[0] for text in region.body]
        for statement in parsed[:-1]:
            name, call = line(statement)
            op = ast.unparse(call.func)
            args = [argument(a, refs) for a in call.args]
            kwargs: dict[str, Any] = {str(k.arg): argument(k.value, refs) for k in call.keywords}
            if op in FACTORIES and device != "cpu":
                kwargs["device"] = device
            slots[name] = len(slots)
            refs[name] = _Ref(slots[name])
            self._lines.append((resolve(replaced.get(op, op), machine), args, kwargs, slots[name], ()))
        self._returns = returned(parsed[-1:], slots)
        self._size, self._names = len(slots), list(slots)
        self._release()

    def _release(self) -> None:
        """Give each line the slots that nobody needs after it, so that peak memory is that of the live values."""
        needed = set(self._returns) | set(range(len(self.region.inputs)))
        lines = []
        for call, args, kwargs, slot, _ in reversed(self._lines):
            used = {r.slot for r in _refs((args, kwargs))}
            lines.append((call, args, kwargs, slot, tuple(used - needed)))
            needed |= used
        self._lines = lines[::-1]

    def __call__(self, *inputs: Any) -> tuple[torch.Tensor, ...]:
        values: list[Any] = [*inputs, *(None,) * (self._size - len(inputs))]
        for call, args, kwargs, slot, release in self._lines:
            values[slot] = call(*[_fill(a, values) for a in args], **{k: _fill(v, values) for k, v in kwargs.items()})
            for gone in release:
                values[gone] = None
        return tuple(values[i] for i in self._returns)

    def lines(self, *inputs: torch.Tensor) -> Generator[tuple[str, Any], None, tuple[torch.Tensor, ...]]:
        """Run the region and give each line's name and value as it is made, of the lines that run; returns what a call returns.

        A later line may write into an earlier value.
        """
        values: list[Any] = [*inputs, *(None,) * (self._size - len(inputs))]
        for call, args, kwargs, slot, _ in self._lines:
            values[slot] = call(*[_fill(a, values) for a in args], **{k: _fill(v, values) for k, v in kwargs.items()})
            yield self._names[slot], values[slot]
        return tuple(values[i] for i in self._returns)


def written(region: Region) -> list[str]:
    """The caches that a region writes, by its own names, in the order of its inputs."""
    called = [line(ast.parse(text).body[0])[1] for text in region.body[:-1]]
    changed = {ast.unparse(arg) for call in called for place in WRITES.get(ast.unparse(call.func), ())
               for arg in call.args[place:place + 1]}
    return [name for name, role, _ in region.inputs if role == "cache" and name in changed]


def line(statement: ast.stmt) -> tuple[str, ast.Call]:
    """`name = op(arguments)`, the form of every line but the last. Raises DamagedArtifact."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=ast.Call() as call) if all(k.arg for k in call.keywords):
            return name, call
    raise DamagedArtifact("a region holds a line that is no `name = op(arguments)`", found=ast.unparse(statement))


def returned(last: list[ast.stmt], slots: dict[str, Any]) -> list[Any]:
    """What `slots` has for the names of `return (name, ...)`, the last line. Raises DamagedArtifact."""
    match last:
        case [ast.Return(value=ast.Tuple(elts=elts))] if all(getattr(e, "id", None) in slots for e in elts):
            return [slots[e.id] for e in elts if isinstance(e, ast.Name)]
    raise DamagedArtifact("a region does not end by returning a tuple of its values", found="".join(map(ast.unparse, last)))


def _refs(tree: Any):
    if isinstance(tree, _Ref):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for item in tree:
            yield from _refs(item)
    elif isinstance(tree, dict):
        yield from _refs(list(tree.values()))


def _fill(value: Any, values: list[Any]) -> Any:
    if isinstance(value, _Ref):
        return values[value.slot]
    if isinstance(value, list):
        return [_fill(v, values) for v in value]
    return value


def argument(node: ast.expr, known: dict[str, Any]) -> Any:
    """A literal, a torch constant, a list of them, or what `known` has for the name of an earlier value."""
    if isinstance(node, ast.Name):
        if node.id in known:
            return known[node.id]
        if node.id in ("inf", "nan"):
            return getattr(math, node.id)
    elif isinstance(node, ast.List):
        return [argument(e, known) for e in node.elts]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = argument(node.operand, known)
        if isinstance(value, (int, float)):
            return -value
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
        found = getattr(torch, node.attr, None)
        if isinstance(found, (torch.dtype, torch.memory_format)):
            return found
    elif isinstance(node, ast.Constant):
        return node.value
    raise DamagedArtifact("a region holds an argument that cannot be read", found=ast.unparse(node))
