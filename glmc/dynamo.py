"""What glmc must know of dynamo: its graphs in the tracer's dialect, and which compiled object a graph belongs to.

Dynamo's graph holds torch functions; the passes read ATen as `glmc.trace` writes it. `retrace` runs the one to get the
other, under dynamo's own symbols, so that a size that dynamo left open stays open and no guard is lost.
"""

from __future__ import annotations

import inspect
import re
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import fx, nn

from glmc.errors import InternalError, UsageError
from glmc.passes.merge import Merged
from glmc.passes.tidy import dead
from glmc.trace import Trace

_ROOT = re.compile(r"^L\['\w+'\]")
_ARGUMENT = re.compile(r"^L\['\w+'\]$")
_INDEX = re.compile(r"\._modules\['([^']*)'\]|\['([^']*)'\]|\[(\d+)\]")
_HELD = re.compile(r"\._(?:parameters|buffers)\[")
_PLAIN = (torch.Tensor, nn.Parameter, nn.Buffer)


def module_path(path: str) -> str:
    """Dynamo's path of a module as the tracer writes it: "model.layers.0.mlp" for "L['self'].layers[0].mlp"."""
    inner = _INDEX.sub(lambda m: "." + next(g for g in m.groups() if g is not None), _ROOT.sub("", path))
    return ("model" + inner) if _ROOT.match(path) else inner


def unreadable(graph: fx.GraphModule, inputs: list[Any]) -> str | None:
    """Why this graph cannot be retraced; None when it can."""
    strange = sorted({type(i).__name__ for i in inputs if isinstance(i, torch.Tensor) and type(i) not in _PLAIN})
    if strange:
        return f"inputs are tensors of another kind: {', '.join(strange)}"
    if torch.is_autocast_enabled("cpu"):
        return "compiled under autocast, which changes the dtypes that a fused op would be proved for"
    own = [n.name for n in graph.graph.nodes if n.op in ("get_attr", "call_module")]
    return f"the graph holds modules or tensors of its own: {', '.join(own[:3])}" if own else None


def unfit(made: fx.GraphModule, inputs: list[Any]) -> str | None:
    """Why no site of the retraced graph may be taken; None when it may be rewritten."""
    tensors = [i for i in inputs if isinstance(i, torch.Tensor)]
    devices = sorted({t.device.type for t in tensors} | {torch.get_default_device().type})
    if devices != ["cpu"]:
        return f"tensors on {' and '.join(devices)}; this version has kernels for the CPU only"
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return "gradients are recorded, and fused ops are proved forwards only; call it under torch.no_grad()"
    for node in made.graph.nodes:
        if node.op != "call_function" or isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target.__module__ != "_operator" and not node.target.__name__.startswith("sym_"):
            return f"the graph holds {node.target}, whose effects glmc does not know"
    return None


def retrace(graph: fx.GraphModule, inputs: list[Any]) -> fx.GraphModule:
    """Dynamo's graph as ATen before dispatch, composite operators kept whole: what `glmc.trace.trace` gives.

    inputs: dynamo's sample inputs, tensors and sizes. The result takes the same inputs in the same order; its sizes are
    symbols of dynamo's own shape environment and every step carries the path of its module.
    """
    from torch._dispatch.python import enable_python_dispatcher
    from torch._guards import TracingContext, tracing
    from torch._subclasses import FakeTensorMode
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import PropagateUnbackedSymInts
    from torch.fx.traceback import preserve_node_meta

    class Runner(PropagateUnbackedSymInts):
        """Runs dynamo's graph. A float that some object holds (an eps) becomes the number it is, with dynamo's guard; one
        that the caller passes stays open."""

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if isinstance(result, torch.SymFloat) and n.op == "call_method" and n.target == "item":
                source = getattr(n.args[0], "_dynamo_source", None)
                return float(result) if source is not None and not _ARGUMENT.match(source.name) else result
            return result

    context = TracingContext.get()
    if context.fake_mode is None:
        raise InternalError("dynamo gives no symbols to trace with")
    # A mode of our own: what this trace does to its fake inputs must not reach the compiler's.
    mode = FakeTensorMode(shape_env=context.fake_mode.shape_env)

    def fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        known = context.tensor_to_context.get(value)
        return mode.from_tensor(value, symbolic_context=known, source=known.tensor_source if known else None, trace=False)

    fakes = [fake(i) for i in inputs]
    with tracing(TracingContext(mode)), mode, enable_python_dispatcher(), preserve_node_meta(), torch.no_grad():
        made = make_fx(Runner(graph).run, pre_dispatch=True)(*fakes)
    for switch in made.graph.find_nodes(op="call_function", target=torch._C._set_grad_enabled):
        made.graph.erase_node(switch)  # a graph that records gradients is not rewritten; see `unfit`
    for node in made.graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {k: (module_path(path), kind) for k, (path, kind) in stack.items()}
    _keep_sources(graph, made)
    return made


def _keep_sources(graph: fx.GraphModule, made: fx.GraphModule) -> None:
    """What dynamo tells the compiler about its inputs, on the graph that takes its place."""
    before, after = (g.graph.find_nodes(op="placeholder") for g in (graph, made))
    if len(before) != len(after):
        raise InternalError("retracing changed the number of inputs", expected=len(before), found=len(after))
    for old, new in zip(before, after, strict=True):
        new.meta.update({k: v for k, v in old.meta.items() if k in ("tensor_dict", "grapharg", "steal_arg")})
        if hasattr(old, "_dynamo_source"):
            new._dynamo_source = old._dynamo_source
    if hasattr(graph, "_param_name_to_source"):
        made._param_name_to_source = graph._param_name_to_source


def apart() -> AbstractContextManager:
    """Traces made meanwhile are none of dynamo's: with its symbols, theirs would become guards on nothing."""
    from torch._guards import tracing

    return tracing(None)


def as_trace(made: fx.GraphModule, inputs: list[Any]) -> Trace:
    """The retraced graph as the passes take it: parameters told apart from what the caller gives."""
    result = Trace(made.graph)
    for node, value in zip(made.graph.find_nodes(op="placeholder"), inputs, strict=True):
        name = node._dynamo_source.name if hasattr(node, "_dynamo_source") else ""
        if isinstance(value, torch.Tensor) and _HELD.search(name):
            result.parameters[node.name] = module_path(_HELD.sub("[", name)).removeprefix("model.")
        else:
            result.inputs.append(node.name)
    return result


def own_products(graph: fx.Graph, merged: list[Merged]) -> None:
    """Give each part of a joined product a product of its own again, and join the results where they are read as one.

    The weights belong to the caller, who may change them: joining them would mean to copy them at every call.
    """
    aten, alive = torch.ops.aten, set(graph.nodes)
    for one in merged:
        if one.linear not in alive:
            raise InternalError("a fused op took a joined product with it", found=one.linear.name)
        linear, columns = one.linear, [cat.args[0] for cat in one.concatenations]
        with graph.inserting_before(linear):
            parts = [graph.call_function(aten.linear.default, (linear.args[0], *own)) for own in zip(*columns, strict=True)]
            for part, (piece, _) in zip(parts, one.parts, strict=True):
                part.meta = dict(piece.meta)
                if piece in linear.users:
                    piece.replace_all_uses_with(part)
                    graph.erase_node(piece)
            if linear.users:
                whole = graph.call_function(aten.cat.default, (parts, -1))
                whole.meta = dict(linear.meta)
                linear.replace_all_uses_with(whole)
    dead.run(graph)
    graph.lint()


def owner() -> Any:
    """What stands for the `torch.compile` call whose graph is being compiled; None outside dynamo."""
    from torch._dynamo.eval_frame import innermost_backend
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        translator = InstructionTranslator.current_tx()
    except AttributeError:
        return None
    backend = translator.output.compiler_fn
    return None if backend is None else innermost_backend(backend)


def owner_of(compiled: Any) -> Any:
    """What `owner` gave while `compiled` was compiled. compiled: what `torch.compile` returned, or a module after
    `module.compile(...)`. Raises UsageError for anything else.
    """
    from torch._dynamo.eval_frame import OptimizedModule, innermost_backend

    if isinstance(compiled, nn.Module) and not isinstance(compiled, OptimizedModule):
        compiled = compiled._compiled_call_impl
    if isinstance(compiled, OptimizedModule) and callable(compiled.dynamo_ctx.callback):
        return innermost_backend(compiled.dynamo_ctx.callback)
    if inspect.isfunction(compiled):
        held = [v for v in inspect.getclosurevars(compiled).nonlocals.values() if hasattr(v, "_torchdynamo_orig_backend")]
        if len(held) == 1:
            return innermost_backend(held[0])
    raise UsageError("not an object that torch.compile returned", field="compiled", found=type(compiled).__name__)


def compile_id() -> str:
    """Dynamo's name of the graph being compiled: its frame and how often that was compiled before, "0/1"."""
    from torch._guards import CompileContext

    return str(CompileContext.current_compile_id())
