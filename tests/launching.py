"""Calls that start every Triton kernel with several programs, at awkward sizes: each form of a fusion, and ops that are none.

As a process of its own it starts them on a GPU, one after the other, for a tool that watches.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import traced
import triton
import triton.language as tl
from triton.runtime.jit import JITFunction

from glmc import kernels
from glmc.kernels.dequantise import GROUPS, Coded, stored
from glmc.kernels.grouped_mm import triton as grouped
from glmc.kernels.linear import triton as linear
from glmc.passes import declare

Call = tuple[Any, ...]
"""A function and its arguments."""


def own(op: str) -> set[str]:
    """The kernels of an op's file that its host code starts: the other functions there are parts of them."""
    module = kernels.load(op, "triton")
    return {name for name, value in vars(module).items() if isinstance(value, JITFunction) and name.endswith("_kernel")
            and value.fn.__module__ == module.__name__}


OPS = [op for op in kernels.names() if kernels.has(op, "triton") and own(op)]


def random_coded(form: str, *sizes: int) -> Coded:
    made = Coded.of(form, sizes, torch.randint(0, 120, stored(form, sizes)[1], dtype=torch.uint8))
    made.scales.fill_({"MX4": 125, "F8": 0.1, "NV4": 56}[form])
    return made


def products() -> Iterator[Call]:
    for rows, outputs, inputs in ((1, 70, 600), (1, 10, 9000), (3, 70, 600), (3, 10, 9000)):
        yield linear.run, torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    for form in GROUPS:
        for rows in (1, 3, linear.FEW + 1):
            yield linear.run, torch.randn(rows, 192), random_coded(form, 70, 192), None


def coded_matrices() -> Iterator[Call]:
    for form in GROUPS:
        yield kernels.load("dequantise", "triton").run, random_coded(form, 70, 1184), torch.bfloat16


def grouped_products() -> Iterator[Call]:
    order = torch.randperm(40)
    for weight in (torch.randn(5, 70, 64), random_coded("MX4", 5, 70, 64)):
        yield grouped.product, torch.randn(20, 64), weight, torch.tensor([8, 8, 20, 39, 40]), 40, order, 2


def experts() -> Iterator[Call]:
    for tokens in (1, 40):
        chosen = torch.rand(tokens, 7).topk(3).indices
        for gate_up, down in ((random_coded("F8", 7, 64, 32), random_coded("MX4", 7, 32, 32)),
                              (torch.randn(7, 40, 24), torch.randn(7, 24, 20))):
            yield (kernels.load("moe_experts", "triton").run, torch.randn(tokens, down.shape[1]), chosen,
                   torch.rand(tokens, 3), gate_up, down)


def at(op: str, **sizes: Any) -> Call:
    maths = declare.Maths(declare.load(op).reference, (sizes,))
    return call_of(op, maths, torch.float32)


def contexts() -> Iterator[Call]:
    for slots in (65, 300):
        yield at("attention", B=2, H=6, K=2, S=1, L=slots, D=20, V=12, scale=0.25)


def latent_contexts() -> Iterator[Call]:
    sizes = {"B": 2, "S": 1, "L": 300, "H": 18, "N": 10, "E": 6, "R": 20, "M": 18 * 22, "C": 270, "scale": 0.25}
    yield at("latent_attention", **sizes)
    yield at("latent_attention", **sizes, chosen=None)


def rows_of_lanes() -> Iterator[Call]:
    yield kernels.load("pick_lanes", "triton").run, torch.randn(3, 70, 33), [(i * 7 + 2) % 3 for i in range(33)]


def choices() -> Iterator[Call]:
    """Each way of choosing a token, of a vocabulary that is cut among programs."""
    choose = kernels.load("sample", "triton").run
    for options in ({}, {"temperature": 0.7}, {"temperature": 0.7, "top_k": 40}, {"temperature": 0.7, "top_p": 0.8},
                    {"temperature": 0.7, "top_k": 40, "top_p": 0.8, "penalty": 1.3}):
        uniforms = torch.rand(2, dtype=torch.float64) if options else None
        yield partial(choose, **options), torch.randn(2, 2100) * 3, torch.rand(2, 2100) < 0.3, uniforms


FURTHER = {"linear": products, "dequantise": coded_matrices, "grouped_mm": grouped_products, "moe_experts": experts,
           "attention": contexts, "latent_attention": latent_contexts, "pick_lanes": rows_of_lanes, "sample": choices}
"""Op -> calls beside those of its fusion's forms: contexts cut among programs, coded matrices, ops that are no fusion."""


def call_of(op: str, maths: declare.Maths, dtype: torch.dtype, wide: bool = False) -> Call:
    given = dict(zip(maths.present(0), traced.tensors_of(maths, dtype, wide), strict=True))
    if "chosen" in given:  # no slot twice, as the indexer chooses: else any of its places may count
        drawn = torch.rand(*given["chosen"].shape[:-1], maths.samples[0]["L"])
        given["chosen"] = drawn.topk(given["chosen"].shape[-1]).indices.to(given["chosen"].dtype)
    scalars = maths.settings(0, dtype)
    return lambda *tensors: kernels.load(op, "triton").run(*tensors, **scalars), *(given.get(n) for n in maths.tensors)


def calls(op: str) -> Iterator[Call]:
    """(function, its arguments) for an op: every form of its fusion, and FURTHER."""
    torch.manual_seed(1)
    if op in declare.names():
        fusion = declare.load(op)
        for number, (pair, dtype, wide) in enumerate(f for f in traced.forms(fusion) if f[1] is torch.float32):
            yield call_of(op, traced.unseen(fusion, pair, 2 - number % 2), dtype, wide)
        yield call_of(op, traced.unseen(fusion, 0, 3), torch.bfloat16)
    yield from FURTHER.get(op, list)()


def moved(value: Any) -> Any:
    """A tensor or a coded matrix on the GPU, copied there byte by byte; anything else as it is."""
    if isinstance(value, torch.Tensor):
        return value.cuda()
    if not isinstance(value, Coded):
        return value
    whole = value.codes.as_strided((value.codes.untyped_storage().nbytes(),), (1,), 0)
    return Coded.of(value.form, value.shape, whole.cuda().view(*value.shape[:-1], -1))


@triton.jit
def beyond_kernel(x, y):
    tl.store(y + tl.program_id(0), tl.load(x + tl.program_id(0) + (1 << 20)))


@triton.jit
def unset_kernel(x, y):
    tl.store(y + tl.program_id(0), tl.load(x + tl.program_id(0)) * 2)


def planted(which: str) -> None:
    """Start a kernel that is at fault: "memcheck" reads beyond its tensor, "initcheck" what nobody wrote."""
    kernel = {"memcheck": beyond_kernel, "initcheck": unset_kernel}[which]
    kernel[(4,)](torch.empty(64, device="cuda"), torch.zeros(64).cuda())


def main(which: str = "") -> None:
    """All calls on the GPU, or a planted one."""
    for op in () if which else OPS:
        for function, *given in calls(op):
            function(*map(moved, given))
    if which:
        planted(which)
    torch.cuda.synchronize()
    print("all were started")


if __name__ == "__main__":
    main(*sys.argv[1:])
