"""Each GPU kernel as a share of a measured copy, and beside what Inductor and Liger make of the same steps."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_clock
import torch
from measure import summary
from report import Report, default_out
from torch.nn import functional

from glmc import kernels
from glmc.kernels.timing import microseconds
from glmc.passes import declare

SHARE, DECODE, NEVER = 0.85, 1.2, 1.0
HOW = ("microseconds a call, from device graphs that hold several calls over other memory each; medians of 15 replays. Share: "
       "bytes that must be read and written once, over the time, over the fastest of torch's copies of 64 MB, 256 MB and 1 GB "
       "in the same run. Inductor: torch.compile of the fusion's reference, static shapes, in the same graphs. bfloat16")


@dataclass(frozen=True)
class Case:
    """A fusion at a model's sizes: `given` makes one set of tensors, `scalars` are the op's, `moved` the bytes it must move."""

    name: str
    fusion: str
    given: Callable[[], list[torch.Tensor | None]]
    scalars: dict[str, Any]
    moved: int

    def sets(self) -> list[list[torch.Tensor | None]]:
        """Several sets, together far more than the cache holds, or twenty small ones."""
        return [self.given() for _ in range(min(20, max(3, (1 << 30) // self.moved)))]


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


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
    slots = torch.arange(new, device="cuda").expand(rows, new).contiguous()
    cos, sin, q_weight, k_weight = rand(rows, new, 32), rand(rows, new, 32), rand(128), rand(128)
    for model, (heads, kv, norm, way) in MODELS.items():
        width = (heads + 2 * kv) * 128

        def given(width=width, kv=kv, norm=norm) -> list[torch.Tensor | None]:
            cache = [rand(rows, max(new, 256) + 1, kv, 128)[:, :max(new, 256)] for _ in range(2)]
            weights = (q_weight, k_weight) if norm else (None, None)
            return [rand(rows, new, width), cos, sin, *weights, None, None, *cache, slots]

        yield Case(f"split_qkv_norm_rope {model}", "split_qkv_norm_rope", given,
                   {"heads": heads, "kv_heads": kv, "eps": 1e-5 if norm else None, "read": way, "write": way, "axis_map": None},
                   2 * tokens * width * 2)


def attentions(report: Report, details: dict[str, Any]) -> None:
    """Attention over the cache, one token and a prompt, beside torch's own with the same mask."""
    run = kernels.load("attention", "triton").run
    own = functools.partial(torch.nn.functional.scaled_dot_product_attention, enable_gqa=True)
    for rows, heads, kv, new, slots in ((1, 32, 2, 1, 512), (1, 32, 2, 1, 8192), (1, 32, 2, 1, 65536), (64, 96, 8, 1, 1024),
                                        (1, 32, 2, 1024, 1024), (1, 32, 2, 8192, 8192)):
        visible = torch.ones(new, slots, dtype=torch.bool, device="cuda").tril(slots - new).expand(rows, 1, new, slots)
        sets = [[rand(rows, new, heads, 128).transpose(1, 2),
                 *(rand(rows, slots + 1, kv, 128)[:, :slots].transpose(1, 2) for _ in range(2))] for _ in range(4)]
        ours = microseconds([functools.partial(run, *given, visible, scale=0.088) for given in sets])
        theirs = microseconds([functools.partial(own, *given, attn_mask=visible, scale=0.088) for given in sets])
        name = f"attention, {rows} rows of {new} tokens, {heads} heads over {kv}, {slots} slots"
        report.add(f"{name}, over torch", statistics.median(theirs) / statistics.median(ours), "x", NEVER, "higher")
        details["attention"][name] = {"ours": summary(ours, 2), "torch": summary(theirs, 2)}


FOLLOWED = {"GLM-4-9B gate and up": (27392, 4096, 0), "GLM-4-9B down and a sum": (4096, 13696, 1),
            "GLM-4.5-Air shared gate and up": (2816, 4096, 0), "GLM-4.5-Air shared down and two sums": (4096, 1408, 2)}
"""Product and what follows it: outputs, inputs, and the terms added; of none the halves are gate and up."""


def after(product: Callable[..., torch.Tensor], joined: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor,
          terms: list[torch.Tensor]) -> torch.Tensor:
    """The product and, in launches of their own, what follows it: sums, or where there are no terms gate and up."""
    made = product(x, weight)
    return sum(terms, made) if terms else joined(*made.chunk(2, -1))


def followed(report: Report, details: dict[str, Any]) -> None:
    """A product of few rows that does what follows it, beside a launch for each and beside torch's steps."""
    run, join = (kernels.load(op, "triton").run for op in ("linear", "silu_mul"))
    steps = functional.linear, lambda gate, up: functional.silu(gate) * up
    for name, (outputs, inputs, count) in FOLLOWED.items():
        weights = [rand(outputs, inputs) for _ in range(max(4, (1 << 28) // (outputs * inputs)))]
        for rows in (1, 8):
            x, terms = rand(rows, inputs), [rand(rows, outputs) for _ in range(count)]
            ways = {"one launch": [functools.partial(run, x, w, None, terms, gated=not terms) for w in weights],
                    "a launch each": [functools.partial(after, run, join, x, w, terms) for w in weights],
                    "torch": [functools.partial(after, *steps, x, w, terms) for w in weights]}
            found = {way: microseconds(calls) for way, calls in ways.items()}
            for way in ("a launch each", "torch"):
                report.add(f"{name}, {rows} rows, over {way}",
                           statistics.median(found[way]) / statistics.median(found["one launch"]), "x", NEVER, "higher")
            details["followed"][f"{name}, {rows} rows"] = {way: summary(us, 2) for way, us in found.items()}


def timed(call: Callable[..., Any], case: Case, sets: list[list[torch.Tensor | None]]) -> list[float]:
    return microseconds([functools.partial(call, *given, **case.scalars) for given in sets])


def inductor(case: Case, sets: list[list[torch.Tensor | None]]) -> list[float]:
    """What Inductor makes of the reference at these very sizes."""
    torch._dynamo.reset()
    return timed(torch.compile(declare.load(case.fusion).reference, fullgraph=True, dynamic=False), case, sets)


def liger(case: Case) -> Callable[..., Any] | None:
    """Liger's own kernel of the same maths, None where it has none."""
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    if case.fusion == "rms_norm":
        return lambda x, weight, eps: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)
    if case.fusion == "silu_mul":
        return lambda gate, up: LigerSiLUMulFunction.apply(gate.contiguous(), up.contiguous())
    return None


@torch.no_grad()
def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--tokens", default="8192,65536", help="where kernels are held against a copy")
    options.add_argument("--buckets", default="1,8,64,512,8192", help="where they are held against Inductor")
    options.add_argument("--no-liger", action="store_true")
    options.add_argument("--out", type=Path, default=default_out("gpu/kernels"))
    given = options.parse_args()
    report = Report("gpu_kernels", given.out)
    copies = gpu_clock.copy_bandwidth()
    copy = max(copies.values())
    report.add("copy", copy / 1e9, "GB/s")
    details: dict[str, Any] = {"device": gpu_clock.device(), "copies": copies, "shares": {}, "buckets": {}, "liger": {},
                               "attention": {}, "followed": {}}
    attentions(report, details)
    followed(report, details)
    report.finish(HOW, details)  # now and then, so that what is known is not lost to what takes long
    for tokens in map(int, given.tokens.split(",")):
        for case in (*norms(tokens), *turns(tokens), *splits(tokens)):
            sets = case.sets()
            samples = timed(kernels.load(case.fusion, "triton").run, case, sets)
            share = case.moved / statistics.median(samples) * 1e6 / copy
            report.add(f"{case.name}, {tokens} tokens", share, "of a copy", SHARE, "higher")
            details["shares"][f"{case.name}, {tokens}"] = summary(samples, 2) | {"bytes": case.moved}
            other = None if given.no_liger else liger(case)
            if other is not None and tokens == 8192:
                theirs = timed(other, case, sets)
                report.add(f"{case.name}, {tokens} tokens, over Liger", statistics.median(theirs) / statistics.median(samples),
                           "x", NEVER, "higher")
                details["liger"][f"{case.name}, {tokens}"] = summary(theirs, 2)
            del sets
        report.finish(HOW, details)
    for tokens in map(int, given.buckets.split(",")):
        for case in splits(tokens):
            sets = case.sets()
            ours, theirs = timed(kernels.load(case.fusion, "triton").run, case, sets), inductor(case, sets)
            report.add(f"{case.name}, {tokens} tokens, over Inductor", statistics.median(theirs) / statistics.median(ours), "x",
                       DECODE if tokens <= 64 else NEVER, "higher")
            details["buckets"][f"{case.name}, {tokens}"] = {"ours": summary(ours, 2), "inductor": summary(theirs, 2)}
            del sets
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
