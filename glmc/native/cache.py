"""The cache in the library's layout (kernels/attention/cache.hpp): for each layer parts of keys and of values by name.

Attention over heads has keys and values of each. Latent attention has one head: its key is a compressed row and the turned
lanes behind it, its value the compressed row again; an indexer has keys of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy
import torch

from glmc.native.calls import Refused
from glmc.program import Region, Spec

PANEL = 32


@dataclass(frozen=True)
class Part:
    """`heads` of `width` channels, as keys or as values are laid out."""

    heads: int
    width: int
    values: bool = False


def parts_of(specs: Mapping[str, Spec]) -> dict[str, Part]:
    """The parts that hold a layer's caches. specs: the region's own name of each -> its spec. Raises Refused."""
    sizes = {name: tuple(int(s) for s in spec.shape[2:]) for name, spec in specs.items()}
    heads = set(sizes) == {"keys", "values"} and sizes["keys"] == sizes["values"]
    latent = {"latent", "turned"} <= set(sizes) <= {"latent", "turned", "index"}
    if not (heads or latent) or any(len(s) != 2 for s in sizes.values()):
        raise Refused(f"caches that are neither keys and values of heads nor latents: {', '.join(sorted(sizes))}")
    odd = [name for name, (_, width) in sizes.items() if width % 2]
    if odd and any(spec.dtype == "bfloat16" for spec in specs.values()):
        raise Refused(f"a cache of an odd number of channels: {odd[0]}")
    if heads:
        count, width = sizes["keys"]
        return {"keys": Part(count, width), "values": Part(count, width, values=True)}
    rank = sizes["latent"][1]
    index = {"index": Part(1, sizes["index"][1])} if "index" in sizes else {}
    return {"keys": Part(1, rank + sizes["turned"][1]), "values": Part(1, rank, values=True), **index}


def caches_of(regions: Iterable[Region]) -> tuple[dict[str, Part], str]:
    """The parts that any layer of a program needs, and their dtype. Raises Refused where layers differ, or there is none."""
    found: dict[str, Part] = {}
    dtypes = set()
    for region in regions:
        specs = {name: spec for name, role, spec in region.inputs if role == "cache"}
        dtypes |= {spec.dtype for spec in specs.values()}
        for name, part in parts_of(specs).items() if specs else ():
            if found.setdefault(name, part) != part:
                raise Refused(f"layers whose {name} differ")
    if len(dtypes) != 1:
        raise Refused("caches of several dtypes, or none")
    return found, dtypes.pop()


class Cache:
    """The parts of every layer, [layers, sequences, bytes]; memory is touched as slots fill."""

    def __init__(self, layers: int, sequences: int, slots: int, parts: Mapping[str, Part], dtype: torch.dtype) -> None:
        size = torch.empty((), dtype=dtype).element_size()
        self.slots, self.parts, self.dtype = -(-slots // PANEL) * PANEL, parts, dtype
        self.pack = 1 + int(dtype == torch.bfloat16)
        self.sizes = {"form": int(dtype == torch.bfloat16), "slots": self.slots}
        self._begin: dict[str, int] = {}
        at = 0
        for name, part in parts.items():
            width = -(-part.width // PANEL) * PANEL if part.values else part.width
            self.sizes[name], self._begin[name] = self.slots * width * size, at
            at += part.heads * self.sizes[name]
        self.sizes["sequence"] = at
        # numpy asks the system for zeros, which cost nothing until they are touched; torch writes them.
        self.memory = torch.from_numpy(numpy.zeros((layers, sequences * at), numpy.uint8))

    def place(self, layer: int, part: str) -> int:
        """The address of a part of a layer."""
        return self.memory[layer].data_ptr() + self._begin[part]

    def _view(self, name: str) -> torch.Tensor:
        """A part of the first layer: keys [B, H, L / 32, 32, D], values [B, H, L, Dp], as views of the memory."""
        part, begin = self.parts[name], self._begin[name]
        rows = self.memory[0].view(-1, self.sizes["sequence"])[:, begin:begin + part.heads * self.sizes[name]]
        heads = rows.view(self.dtype).unflatten(1, (part.heads, -1))
        if part.values:
            return heads.unflatten(2, (self.slots // self.pack, -1, self.pack))
        return heads.unflatten(2, (self.slots // PANEL, part.width // self.pack, PANEL, self.pack))

    def put(self, name: str, given: torch.Tensor) -> None:
        """Put `given` [B, L, H, D] into a part of the first layer."""
        part, own = self.parts[name], self._view(name)
        width = own.shape[3] if part.values else part.width
        whole = torch.zeros(given.shape[0], self.slots, part.heads, width, dtype=self.dtype)
        whole[:, :given.shape[1], :, :given.shape[3]] = given
        whole = whole.transpose(1, 2)
        if part.values:
            own.copy_(whole.unflatten(2, (-1, self.pack)).transpose(3, 4))
        else:
            own.copy_(whole.unflatten(2, (-1, PANEL)).unflatten(4, (-1, self.pack)).transpose(3, 4))

    def take(self, name: str, slots: int) -> torch.Tensor:
        """The first `slots` slots of a part of the first layer, [B, slots, H, D]."""
        part, own = self.parts[name], self._view(name).transpose(3, 4)
        whole = own.flatten(2, 3) if part.values else own.flatten(4).flatten(2, 3)
        return whole.transpose(1, 2)[:, :slots, :, :part.width]

    def fill(self, given: Mapping[str, torch.Tensor]) -> None:
        """Put a layer's caches in, by the region's own names for them."""
        if "latent" not in given:
            self.put("keys", given["keys"])
            return self.put("values", given["values"])
        self.put("keys", torch.cat((given["latent"], given["turned"]), -1))
        self.put("values", given["latent"])
        if "index" in given:
            self.put("index", given["index"])

    def copy_out(self, given: Mapping[str, torch.Tensor]) -> None:
        """A layer's caches into tensors. A compressed row that is not the same in both its places becomes NaN."""
        slots = next(iter(given.values())).shape[1]
        keys, values = self.take("keys", slots), self.take("values", slots)
        if "latent" not in given:
            given["keys"].copy_(keys)
            given["values"].copy_(values)
            return
        rank = values.shape[-1]
        given["latent"].copy_(values.masked_fill(keys[..., :rank] != values, torch.nan))
        given["turned"].copy_(keys[..., rank:])
        if "index" in given:
            given["index"].copy_(self.take("index", slots))
