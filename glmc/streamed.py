"""The published transformers model of a checkpoint, on the CPU: a layer of it holds weights only while it runs.

transformers names and merges the tensors by its own rules (not by our recipes, so that a wrong recipe is seen); only the
bytes come through our reader, which decodes quantised ones. Held at once: what lies outside the layers, one layer, and the
tensors it is made from.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from glmc import published
from glmc.checkpoint.dequantise import Expanded
from glmc.checkpoint.folder import Checkpoint, listing
from glmc.checkpoint.scheme import scheme_of
from glmc.errors import ConfigError, WeightMismatch, WeightMissing

LAYER = re.compile(r"^(?:.*\.)?((?:layers|blocks)\.(\d+))(?=\.|$)")
"""The layer of the text model, or block of a vision tower, that a module or tensor is or lies in: its own name, its number."""


CACHES = {"keys": "keys", "values": "values", "latent": "keys", "turned": "values", "index": "indexer_keys"}
"""Our name of a layer's cache -> that of the published cache for the same."""


def cached(layer: Any, name: str) -> torch.Tensor:
    """What a layer of the published cache holds under our name for it, [B, L, heads, D]."""
    found = getattr(layer, CACHES[name])
    return found.unsqueeze(2) if found.dim() == 3 else found.transpose(1, 2)


@dataclass
class Seen:
    """What went into a module and what came out, as flat tuples of tensors."""

    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


@dataclass
class Again:
    """One more run of a layer: its output, what its submodules saw, and its cache afterwards, None where it has none."""

    output: torch.Tensor
    seen: dict[str, Seen]
    cache: Any


@dataclass
class Call:
    """A layer at work, its weights in place: what it was called with. `before`: its cache before the call, if it has one."""

    path: str
    number: int
    layer: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    before: Any

    @property
    def hidden(self) -> torch.Tensor:
        """The layer's input: [B, S, H], of a tower's block [P, H]."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def both(self, exact: bool, swapped: dict[str, torch.Tensor] | None = None) -> tuple[Again, Again]:
        """Run the layer twice: as published, and in float32 where that is the `exact` one, else the same again."""
        plain = self.again(wide=False, swapped=swapped)
        return plain, self.again(wide=True, swapped=swapped) if exact else plain

    def again(self, wide: bool, swapped: dict[str, torch.Tensor] | None = None) -> Again:
        """Run the layer on a copy of its cache.

        wide: in float32. swapped: path of a submodule -> what it is given as its input instead.
        """
        module = wide_copy(self.layer) if wide else self.layer
        fit: Callable[[Any], Any] = widened if wide else lambda tree: tree
        kwargs, own = fit(dict(self.kwargs)), copy.deepcopy(self.before)
        if own is not None:
            cache = copy.copy(self.kwargs["past_key_values"])
            for name, value in vars(own).items():
                setattr(own, name, fit(value))
            cache.layers = [*cache.layers[:self.number], own, *cache.layers[self.number + 1:]]
            kwargs["past_key_values"] = cache
        seen: dict[str, Seen] = {}
        hooks = [watch(child, seen, path) for path, child in module.named_modules() if path]
        for path, tensor in (swapped or {}).items():
            child = module.get_submodule(path)
            hooks.append(child.register_forward_pre_hook(
                lambda _, args, tensor=tensor: (tensor.to(args[0].dtype).reshape(args[0].shape), *args[1:])))
        try:
            output = type(module).forward(module, *fit(self.args), **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        return Again(output[0] if isinstance(output, tuple) else output, seen, own)


def watch(module: nn.Module, seen: dict[str, Seen], path: str) -> Any:
    """Write into seen[path] what `module` is given and gives. Returns the hook, to be removed."""
    def note(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        seen[path] = Seen(tuple(tensors((args, kwargs))), tuple(tensors(output)))
    return module.register_forward_hook(note, with_kwargs=True)


def tensors(tree: Any) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ()
    return [found for item in inner for found in tensors(item)]


def widened(tree: Any) -> Any:
    """The same nested tuples, lists and dicts, with floating tensors and dtypes in float32."""
    if isinstance(tree, torch.Tensor):
        return tree.float() if tree.is_floating_point() else tree
    if isinstance(tree, torch.dtype):
        return torch.float32
    if isinstance(tree, dict):
        return {name: widened(value) for name, value in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)(widened(value) for value in tree)
    return tree


def wide_copy(module: nn.Module) -> nn.Module:
    """A float32 copy of a module, with nobody watching it."""
    made = copy.deepcopy(module).float()
    for inner in made.modules():
        inner._forward_hooks.clear()
        inner._forward_hooks_with_kwargs.clear()
    return made


def build(config: dict[str, Any], dtype: torch.dtype) -> Any:
    """The published model for `config` on the meta device, nothing in it replaced. Raises ConfigError."""
    from transformers import AutoConfig

    others = ("auto_map", "quantization_config", "torch_dtype", "dtype", "components")
    fields = {k: v for k, v in config.items() if k not in others}
    try:
        parsed = AutoConfig.for_model(**fields)
        experts = {"experts_implementation": "eager"} if hasattr(parsed.get_text_config(), "n_routed_experts") else {}
        with torch.device("meta"):
            model = published.class_of(parsed)(parsed, dtype=dtype, attn_implementation="eager", **experts)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError("transformers refuses this configuration", field="config.json", found=str(error)) from error
    return model.eval()


class Streamed:
    """The published model of `checkpoint` in `dtype`, with eager attention and a plain loop over experts.

    Raises ConfigError, WeightMissing, WeightMismatch, and what reading the checkpoint raises.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.utils import logging

        logging.disable_progress_bar()
        scheme = scheme_of(checkpoint.config)
        self.checkpoint, self.dtype = checkpoint, dtype
        self.expanded = Expanded(checkpoint, scheme.block if scheme else None)
        self.model = build(checkpoint.config, dtype)
        self.computed = published.computed_buffers(self.model)
        self.conversions: Any = get_model_conversion_mapping(self.model)
        self.on_layer: Callable[[Call], Any] | None = None
        self._load(None)
        for path, layer in self.model.named_modules():
            found = LAYER.match(path)
            if found and found[0] == path:
                layer.forward = self._streaming(path, int(found[2]), layer)

    def cache(self) -> Any:
        """An empty cache of the published kind."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config.get_text_config())

    def run(self, ids: torch.Tensor, cache: Any, media: dict[str, torch.Tensor] | None = None,
            on_layer: Callable[[Call], Any] | None = None) -> torch.Tensor:
        """Logits [1, S, vocabulary] of ids int64 [1, S], which follow what the cache holds.

        media: the images among them, as the published model takes them. on_layer: called after each layer or block ran, with
        its weights still there.
        """
        self.on_layer = on_layer
        with torch.no_grad():
            return self.model(input_ids=ids, past_key_values=cache, use_cache=True, **(media or {})).logits

    def close(self) -> None:
        """Let go of the weights outside the layers."""
        self.model.to("meta")

    def _streaming(self, path: str, number: int, layer: nn.Module) -> Callable:
        plain = layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._load(path)
            try:
                cache = kwargs.get("past_key_values") if self.on_layer else None
                before = copy.deepcopy(cache.layers[number]) if cache is not None else None
                output = plain(*args, **kwargs)
                if self.on_layer:
                    self.on_layer(Call(path, number, layer, args, kwargs, before))
                return output
            finally:
                layer.to("meta")
        return forward

    def _load(self, path: str | None) -> None:
        """Give a layer its weights, or everything outside the layers (None)."""
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        own = LAYER.match(path)[1] if path else None  # type: ignore[index]
        names = [n for n in self.expanded.names() if (m[1] if (m := LAYER.match(n)) else None) == own]
        setup = LoadStateDictConfig(weight_mapping=self.conversions, dtype=self.dtype,
                                    device_map={"": "cpu"})
        info, _ = convert_and_load_state_dict_in_model(
            model=self.model, state_dict={n: self.expanded.read(n) for n in names}, load_config=setup)
        for name, tensor in self.computed.items():
            if name.startswith(f"{path}.") if path else not LAYER.match(name):
                owner, _, buffer = name.rpartition(".")
                self.model.get_submodule(owner)._buffers[buffer] = tensor
        if path is None:
            self.model.tie_weights()
        if info.mismatched_keys:
            raise WeightMismatch("the published model refuses tensors of the checkpoint", file=self.checkpoint.folder,
                                 found=str(sorted(map(str, info.mismatched_keys))))
        if info.conversion_errors:
            raise ConfigError("transformers cannot convert tensors of the checkpoint", file=self.checkpoint.folder,
                              found=str(sorted(map(str, info.conversion_errors))))
        empty = sorted(n for n, t in self.model.state_dict(keep_vars=True).items() if t.is_meta and (
            n.startswith(f"{path}.") if path else not LAYER.match(n)))
        if empty:
            raise WeightMissing(f"parameters of the published model that the checkpoint lacks\n{listing(empty)}",
                                file=self.checkpoint.folder)
