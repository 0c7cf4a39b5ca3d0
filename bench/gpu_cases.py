"""What the GPU kernels are timed on: fusions at the sizes of published models, and who else does the same maths."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from glmc import kernels
from glmc.passes import declare

DEVICE = "cuda"
Tensors = list[torch.Tensor | None]


@dataclass(frozen=True)
class Case:
    """A fusion at a model's sizes: `given` makes one set of tensors, `scalars` are the op's, `moved` the bytes that it must
    read and write once."""

    name: str
    fusion: str
    given: Callable[[], Tensors]
    scalars: dict[str, Any]
    moved: int

    def sets(self) -> list[Tensors]:
        """Several sets, together far more than the cache holds, or twenty small ones."""
        return [self.given() for _ in range(min(20, max(3, (1 << 30) // self.moved)))]

    def run(self, *tensors: torch.Tensor | None) -> Any:
        """Our kernel."""
        return kernels.load(self.fusion, "triton").run(*tensors, **self.scalars)

    def steps(self, *tensors: torch.Tensor | None) -> Any:
        """The fusion's plain steps, experts' products as torch has them."""
        if self.fusion == "moe_experts":
            return torch_experts(*tensors)
        return declare.load(self.fusion).reference(*tensors, **self.scalars)


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16)


def norms(tokens: int) -> Iterator[Case]:
    for width in (4096, 5120):
        weight = rand(width)
        size = tokens * width * 2
        yield Case(f"rms_norm {width}", "rms_norm", lambda w=width, g=weight: [rand(tokens, w), g], {"eps": 1e-5}, 2 * size)
        yield Case(f"add_rms_norm {width}", "add_rms_norm", lambda w=width, g=weight: [rand(tokens, w), rand(tokens, w), g],
                   {"eps": 1e-5}, 4 * size)
    for width in (6848, 1408):
        yield Case(f"silu_mul {width}", "silu_mul", lambda w=width: list(rand(tokens, 2 * w).chunk(2, -1)), {},
                   3 * tokens * width * 2)
    for width, name in ((1536, "GLM-4.1V's merger"), (4096, "GLM-Image")):
        size, scale, shift = tokens * width * 2, rand(width), rand(width)
        yield Case(f"layer_norm {width}, {name}", "layer_norm", lambda w=width, s=scale, b=shift: [rand(tokens, w), s, b],
                   {"eps": 1e-5}, 2 * size)
    yield Case("modulated_norm 4096, GLM-Image", "modulated_norm", lambda: [rand(1, tokens, 4096), rand(1, 1, 4096),
                                                                            rand(1, 1, 4096)], {"eps": 1e-5}, 4 * tokens * 4096)


def turns(tokens: int) -> Iterator[Case]:
    cos, sin, weight = rand(1, tokens, 32), rand(1, tokens, 32), rand(128)
    size = tokens * 32 * 128 * 2
    for name, way in (("half", -2), ("pairs", -1)):
        yield Case(f"rope {name} 64 of 128", "rope", lambda: [rand(1, tokens, 32, 128), cos, sin], {"read": way, "write": way},
                   2 * size)
    yield Case("qk_norm_rope 64 of 128", "qk_norm_rope", lambda: [rand(1, tokens, 32, 128), weight, cos, sin],
               {"eps": 1e-5, "read": -2, "write": -2}, 2 * size)


MODELS = {"GLM-4-9B": (32, 2, False, -1), "GLM-4.5": (96, 8, True, -2), "GLM-4.5-Air": (96, 8, False, -2)}
"""Model -> query heads, key heads, norm of each head, pairing."""


def splits(tokens: int) -> Iterator[Case]:
    """Packed QKV to attention's inputs and the cache; up to 64 tokens are rows of a batch that decodes."""
    rows, new = (tokens, 1) if tokens <= 64 else (1, tokens)
    slots = torch.arange(new, device=DEVICE).expand(rows, new).contiguous()
    cos, sin, q_weight, k_weight = rand(rows, new, 32), rand(rows, new, 32), rand(128), rand(128)
    for model, (heads, kv, norm, way) in MODELS.items():
        width = (heads + 2 * kv) * 128

        def given(width=width, kv=kv, norm=norm) -> Tensors:
            cache = [rand(rows, max(new, 256) + 1, kv, 128)[:, :max(new, 256)] for _ in range(2)]
            weights = (q_weight, k_weight) if norm else (None, None)
            return [rand(rows, new, width), cos, sin, *weights, None, None, *cache, slots]

        yield Case(f"split_qkv_norm_rope {model}", "split_qkv_norm_rope", given,
                   {"heads": heads, "kv_heads": kv, "eps": 1e-5 if norm else None, "read": way, "write": way, "axis_map": None},
                   2 * tokens * width * 2)


def causal(rows: int, new: int, slots: int) -> torch.Tensor:
    """Every slot up to a token's own, the last of them the last token's."""
    return torch.ones(new, slots, dtype=torch.bool, device=DEVICE).tril(slots - new).expand(rows, 1, new, slots)


def cache_of(rows: int, slots: int, heads: int, width: int) -> torch.Tensor:
    """The first slots of a cache that has one more."""
    return rand(rows, slots + 1, heads, width)[:, :slots]


def attentions(sizes: tuple[tuple[int, ...], ...] = (
        (1, 32, 2, 1, 512), (1, 32, 2, 1, 8192), (1, 32, 2, 1, 65536), (8, 96, 8, 1, 8192), (64, 96, 8, 1, 1024),
        (1, 32, 2, 1024, 1024), (1, 32, 2, 8192, 8192))) -> Iterator[Case]:
    """Over the cache, one token and a prompt. sizes: rows, heads, key heads, new tokens, slots."""
    for rows, heads, kv, new, slots in sizes:
        visible = causal(rows, new, slots)
        yield Case(f"attention, {rows} rows of {new} tokens, {heads} heads over {kv}, {slots} slots", "attention",
                   lambda r=rows, h=heads, k=kv, n=new, s=slots, v=visible: [
                       rand(r, n, h, 128).transpose(1, 2), *(cache_of(r, s, k, 128).transpose(1, 2) for _ in range(2)), v],
                   {"scale": 128 ** -0.5}, 4 * rows * 128 * (slots * kv + new * heads))


LATENT = {"GLM-5": (64, 2048), "GLM-4.7-Flash": (20, None)}
"""Model -> heads of 192 plain and 64 turned channels and a value of 256 over rows of 512, and slots that are chosen."""


def latents(slots: tuple[int, ...] = (8192, 65536), rows: tuple[int, ...] = (1, 8)) -> Iterator[Case]:
    """One token of each row."""
    for model, (heads, chosen) in LATENT.items():
        matrix = rand(heads * 448, 512)
        for count, batch in ((s, b) for s in slots for b in rows):
            read, visible = min(chosen or count, count), causal(batch, 1, count)

            def given(heads=heads, count=count, batch=batch, read=read, visible=visible, matrix=matrix, some=chosen) -> Tensors:
                choice = torch.rand(batch, 1, count, device=DEVICE).topk(read).indices.int() if some else None
                return [rand(batch, 1, heads, 192), rand(batch, 1, heads, 64), cache_of(batch, count, 1, 512),
                        cache_of(batch, count, 1, 64), matrix, visible, choice]

            moved = 2 * matrix.numel() + 2 * batch * (read * 576 + heads * (192 + 64 + 256))
            yield Case(f"latent_attention {model}, {batch} rows, {count} slots", "latent_attention", given,
                       {"scale": 256 ** -0.5}, moved)


def indexers(sizes: tuple[tuple[int, int, int], ...] = ((1, 1, 8192), (1, 1, 65536), (8, 1, 8192), (1, 512, 8192)),
             top: int = 2048) -> Iterator[Case]:
    """GLM-5's: 32 heads of 128. sizes: rows, new tokens, slots."""
    for rows, new, slots in sizes:
        visible = causal(rows, new, slots)
        yield Case(f"lightning_indexer GLM-5, {rows} rows of {new} tokens, {slots} slots", "lightning_indexer",
                   lambda r=rows, n=new, s=slots, v=visible: [rand(r, n, 32, 128), cache_of(r, s, 1, 128), rand(r, n, 32), v],
                   {"scale": 128 ** -0.5, "head_scale": 32 ** -0.5, "top": top},
                   2 * rows * (slots * 128 + new * 32 * 129) + 4 * rows * new * top)


def experts(tokens: tuple[int, ...] = (1, 8, 64, 512, 4096), sizes: tuple[int, int, int, int] = (128, 8, 4096, 1408),
            ) -> Iterator[Case]:
    """GLM-4.5-Air's, in bfloat16; chosen at random, other ones in each set. sizes: experts, those of a token, width, inner."""
    count, top, width, inner = sizes
    gate_up, down = rand(count, 2 * inner, width) * width ** -0.5, rand(count, width, inner) * inner ** -0.5
    for rows in tokens:
        touched = count * (1 - (1 - top / count) ** rows)
        yield Case(f"moe_experts GLM-4.5-Air, {rows} tokens", "moe_experts", lambda r=rows: [
            rand(r, width), torch.rand(r, count, device=DEVICE).topk(top).indices,
            torch.full((r, top), 1 / top, device=DEVICE), gate_up, down], {},
                   int(touched * 6 * inner * width) + 4 * rows * width + 12 * rows * top)


def torch_experts(x: torch.Tensor, chosen: torch.Tensor, shares: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor,
                  ) -> torch.Tensor:
    """The experts as transformers' "grouped_mm" has them: rows sorted, torch's grouped product twice."""
    tokens, top = chosen.shape
    ids, order = chosen.reshape(-1).sort()
    ends = torch.cumsum(torch.bincount(ids, minlength=len(down)) if x.device.type == "cpu" else
                        torch.histc(ids.float(), bins=len(down), min=0, max=len(down) - 1), 0).int()
    gate, up = functional.grouped_mm(x[order // top], gate_up.transpose(1, 2), offs=ends).chunk(2, -1)
    rows = functional.grouped_mm(functional.silu(gate) * up, down.transpose(1, 2), offs=ends)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    rows = rows * shares.reshape(-1)[order].unsqueeze(-1)
    return rows[back].view(tokens, top, -1).sum(1).to(x.dtype)


def liger(case: Case) -> Callable[..., Any] | None:
    """Liger's own kernel of the same maths, which takes the same tensors; None where it has none. Its RoPE turns what it is
    given, and heads lie before tokens; it is asked for as many channels as ours."""
    from liger_kernel.ops.fused_add_rms_norm import LigerFusedAddRMSNormFunction
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.rope import rope_forward
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    eps = case.scalars.get("eps")
    if case.fusion == "rope" and case.scalars["read"] == -2:
        key = rand(1, case.moved // (2 * 32 * 128 * 2), 1, 128).transpose(1, 2)
        return lambda x, cos, sin: rope_forward(x.transpose(1, 2), key, cos, sin, rotary_dim=64)[0].transpose(1, 2)
    return {"rms_norm": lambda x, weight: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False),
            "add_rms_norm": lambda x, y, weight: LigerFusedAddRMSNormFunction.apply(x, y, weight, eps, 0.0, "llama", False),
            "layer_norm": lambda x, weight, bias: LigerLayerNormFunction.apply(x, weight, bias, eps),
            "silu_mul": lambda gate, up: LigerSiLUMulFunction.apply(gate.contiguous(), up.contiguous())}.get(case.fusion)


OTHERS: dict[str, Callable[[], Iterator[Case]]] = {"attention": attentions, "latent": latents, "indexer": indexers,
                                                   "experts": experts}
"""What calculates more than it moves: name of a group -> its cases."""
MOVING: dict[str, Callable[[int], Iterator[Case]]] = {"norms": norms, "turns": turns, "splits": splits}
"""What only moves memory: name of a group -> its cases for so many tokens."""
