"""Every Triton kernel on a GPU: parity with float64, many tokens x heads, poisoned outputs, and the artefact's own binaries."""

from __future__ import annotations

import math

import models
import pytest
import torch
import traced

import glmc
from glmc import kernels
from glmc.native.keep import Keep
from glmc.passes import declare
from glmc.runtime import capture

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
NAMES = [name for name in declare.names() if kernels.has(name, "triton")]


def on_gpu(name, maths, tensors, dtype):
    """Results of the kernel on the GPU, on the CPU again."""
    given = dict(zip(maths.present(0), (t.cuda() for t in tensors), strict=True))
    made = kernels.load(name, "triton").run(*(given.get(n) for n in maths.tensors), **maths.settings(0, dtype))
    return tuple(t.cpu() for t in traced.everything(made))


@pytest.mark.parametrize("form", [f for f in traced.every() if f[0] in NAMES], ids=lambda f: "-".join(map(traced.label, f)))
def test_the_kernel_passes_its_exam(form):
    name, pair, dtype, wide = form
    for which in range(4):
        for seed, spread in enumerate((1.0, 1e-3, 30.0)):
            maths = traced.unseen(declare.load(name), pair, which)
            tensors = traced.tensors_of(maths, dtype, wide, seed, spread)
            if name == "lightning_indexer":  # which of the slots that nobody sees fill the rest is the device's to say
                tensors[3][..., :maths.samples[0]["top"]] = True
            results = on_gpu(name, maths, tensors, dtype)
            own = traced.everything(maths.bound(maths.present(0))(*(t.clone() for t in tensors), **maths.settings(0, dtype)))
            right = traced.exact(maths, maths.present(0), tensors, maths.settings(0, dtype))
            mine, its = (traced.worst(traced.in_order(name, r), traced.in_order(name, right)) for r in (results, own))
            assert mine <= 2 * its + 2 * torch.finfo(dtype).eps, (which, seed, mine, its)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 65_536, 262_144])
def test_partial_width_at_many_rows_is_as_exact_as_at_few(dtype, rows):
    x, cos, sin = torch.randn(rows // 8 + 1, 8, 128), torch.randn(rows // 8 + 1, 32), torch.randn(rows // 8 + 1, 32)
    x, cos, sin = x.to(dtype), cos.to(dtype), sin.to(dtype)
    made = kernels.load("rope", "triton").run(x.cuda(), cos.cuda(), sin.cuda(), read=-2, write=-2).cpu()
    exact = declare.load("rope").reference(x.double(), cos.double(), sin.double(), read=-2, write=-2)
    assert float((made.double() - exact).abs().max() / exact.abs().max()) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize(("outputs", "inputs"), [(27392, 4096), (4096, 13696), (130, 9000), (5, 33)])
def test_products_with_few_rows(rows, outputs, inputs, dtype):
    x, weight, bias = (torch.randn(*size).to(dtype) for size in ((rows, inputs), (outputs, inputs), (outputs,)))
    made = kernels.load("linear", "triton").run(x.cuda(), weight.cuda(), bias.cuda()).cpu()
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    assert float((made.double() - exact).abs().max() / exact.abs().max()) <= 64 * torch.finfo(dtype).eps


def followed(x, weight, bias, terms, gated):
    """In float64."""
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    if gated:
        gate, up = exact.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up
    return sum((t.double() for t in terms), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize(("outputs", "inputs"), [(27392, 4096), (2816, 4096), (4096, 13696), (130, 9000), (6, 33)])
@pytest.mark.parametrize("after", [1, 2, "gated"])
def test_products_with_few_rows_and_what_follows_them(after, outputs, inputs, rows, dtype):
    x, weight, bias, *terms = (torch.randn(*size).to(dtype) for size in (
        (rows, inputs), (outputs, inputs), (outputs,), *[(rows, outputs)] * (0 if after == "gated" else after)))
    weight *= inputs ** -0.5
    made = kernels.load("linear", "triton").run(x.cuda(), weight.cuda(), bias.cuda(), [t.cuda() for t in terms],
                                                gated=after == "gated").cpu()
    exact = followed(x, weight, bias, terms, after == "gated")
    assert float((made.double() - exact).abs().max() / exact.abs().max()) <= torch.finfo(dtype).eps * (
        4 if rows <= 16 and dtype == torch.bfloat16 else 64)


@pytest.mark.parametrize("form", ["MX4", "F8", "NV4"])
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
@pytest.mark.parametrize("after", [2, "gated"])
def test_products_with_coded_matrices_and_what_follows_them(after, rows, form):
    for sizes in ((4096, 4096), (130, 9024)):
        keep = Keep(form, sizes, "float32", gpu=True)
        packed = torch.empty(keep.stored()[1], dtype=torch.uint8)
        keep.pack(torch.randn(sizes) * sizes[1] ** -0.5, packed)
        x, bias, terms = torch.randn(rows, sizes[1]), torch.randn(sizes[0]), [torch.randn(rows, sizes[0]) for _ in range(2)]
        terms = [] if after == "gated" else terms
        made = kernels.load("linear", "triton").run(x.cuda(), keep.bound(packed.cuda()), bias.cuda(), [t.cuda() for t in terms],
                                                    gated=after == "gated").cpu()
        exact = followed(x, keep.held(packed), bias, terms, after == "gated")
        assert float((made.double() - exact).abs().max() / exact.abs().max()) <= torch.finfo(torch.float32).eps * 64


@pytest.mark.parametrize("matrix", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
def test_a_router_widens_what_it_reads(rows, matrix):
    x, weight = torch.randn(rows, 4096).bfloat16(), (torch.randn(128, 4096) / 64).to(matrix)
    made = kernels.load("linear", "triton").run(x.cuda(), weight.cuda(), wide=True).cpu()
    exact = x.double() @ weight.double().T
    assert made.dtype == torch.float32
    assert float((made.double() - exact).abs().max() / exact.abs().max()) <= 1e-5


def test_a_product_and_what_follows_it_in_a_recorded_step():
    """Recorded as a decode step is: gate and up, then down and the residual."""
    run = kernels.load("linear", "triton").run
    x, residual = torch.randn(1, 4096, device="cuda"), torch.randn(1, 4096, device="cuda")
    gate_up, down = (torch.randn(size, device="cuda") * 0.02 for size in ((2816, 4096), (4096, 1408)))

    def step():
        return run(run(x, gate_up, gated=True), down, None, [residual])

    replay = capture.Graphs(torch.cuda, torch.device("cuda", 0))(step)
    for _ in range(2):
        x.normal_()
        residual.normal_()
        assert torch.equal(replay(), step())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", ["MX4", "F8", "NV4"])
@pytest.mark.parametrize("rows", [1, 2, 16, 17])
def test_products_with_coded_matrices(rows, form, dtype):
    for sizes in ((4096, 4096), (130, 9024)):
        keep = Keep(form, sizes, "float32", gpu=True)
        packed = torch.empty(keep.stored()[1], dtype=torch.uint8)
        keep.pack(torch.randn(sizes), packed)
        x = torch.randn(rows, sizes[1]).to(dtype)
        made = kernels.load("linear", "triton").run(x.cuda(), keep.bound(packed.cuda())).cpu()
        exact = x.double() @ keep.held(packed).double().T
        worst = float((made.double() - exact).abs().max() / exact.abs().max())
        assert worst <= torch.finfo(dtype).eps * (64 if rows > 16 else 16)


@pytest.mark.parametrize("form", ["MX4", "F8", "NV4"])
@pytest.mark.parametrize("tokens", [1, 8, 9, 300])
def test_experts_with_coded_matrices(tokens, form):
    gate_up, down = (Keep(form, sizes, "float32", gpu=True) for sizes in ((16, 1024, 2048), (16, 2048, 512)))
    packed = [torch.empty(keep.stored()[1], dtype=torch.uint8) for keep in (gate_up, down)]
    for keep, out in zip((gate_up, down), packed, strict=True):
        keep.pack(torch.randn(keep.sizes) * keep.sizes[-1] ** -0.5, out)
    x, shares = torch.randn(tokens, 2048), torch.rand(tokens, 4)
    chosen = torch.stack([torch.randperm(16)[:4] for _ in range(tokens)])
    made = kernels.load("moe_experts", "triton").run(x.cuda(), chosen.cuda(), shares.cuda(), gate_up.bound(packed[0].cuda()),
                                                     down.bound(packed[1].cuda())).cpu()
    exact = declare.load("moe_experts").reference(x.double(), chosen, shares.double(), gate_up.held(packed[0]).double(),
                                                  down.held(packed[1]).double())
    assert float((made.double() - exact).abs().max() / exact.abs().max()) <= 1e-5


def test_every_element_is_written():
    """Memory that the allocator hands out again is poisoned first: what a kernel leaves unwritten shows."""
    for name, pair, which in (("rms_norm", 0, 1), ("rope", 0, 1), ("silu_mul", 0, 1), ("split_qkv_norm_rope", 6, 1),
                              ("latent_attention", 2, 3)):
        maths = traced.unseen(declare.load(name), pair, which)
        tensors = traced.tensors_of(maths, torch.float32)
        size = max(math.prod(t.shape) for t in tensors) * 4
        poison = [torch.full((size,), float("nan"), device="cuda") for _ in range(8)]
        del poison
        assert all(bool(t.isfinite().all()) for t in on_gpu(name, maths, tensors, torch.float32))


GLM_5 = {"B": 2, "S": 1, "L": 5000, "H": 64, "N": 192, "E": 64, "R": 512, "M": 64 * (192 + 256), "C": 2048, "scale": 0.0625}
SIZES = {"GLM-5": GLM_5, "GLM-5, one row": {**GLM_5, "B": 1},
         "GLM-4.7-Flash": {**GLM_5, "H": 20, "M": 20 * (192 + 256), "chosen": None}}


def latents(sizes, seed=0):
    """Latent attention at the sizes of a model, on the GPU in bfloat16: (maths, tensors). A third of the slots is seen."""
    maths = declare.Maths(declare.load("latent_attention").reference, (sizes,))
    made = dict(zip(maths.present(0), traced.tensors_of(maths, torch.bfloat16, seed=seed), strict=True))
    made["kv_b"] /= sizes["R"] ** 0.5
    made["visible"] = torch.arange(sizes["L"]).expand(made["visible"].shape) < sizes["L"] // 3
    if "chosen" in made:
        order = torch.rand(sizes["B"], 1, sizes["L"], generator=torch.Generator().manual_seed(seed)).argsort(-1)
        made["chosen"] = order[..., :sizes["C"]].int()
    return maths, [t.cuda() for t in made.values()]


@pytest.mark.parametrize("model", SIZES)
def test_latent_attention_at_the_sizes_of_a_model(model):
    maths, tensors = latents(SIZES[model])
    made = kernels.load("latent_attention", "triton").run(*tensors, scale=0.0625)
    own = maths.bound(maths.present(0))(*tensors, scale=0.0625)
    right = traced.exact(maths, maths.present(0), tensors, {"scale": 0.0625})
    assert traced.worst(made, right) <= 2 * traced.worst(own, right) + 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("model", SIZES)
def test_latent_attention_in_a_recorded_step(model):
    """What is recorded reads the memory it was recorded with: other numbers there, the same result as when started anew."""
    run = kernels.load("latent_attention", "triton").run
    _, tensors = latents(SIZES[model])
    replay = capture.Graphs(torch.cuda, torch.device("cuda", 0))(lambda: run(*tensors, scale=0.0625))
    for seed in (1, 2):
        for old, new in zip(tensors, latents(SIZES[model], seed)[1], strict=True):
            old.copy_(new)
        assert torch.equal(replay(), run(*tensors, scale=0.0625))


def test_the_indexer_at_the_sizes_of_a_model_and_in_a_recorded_step():
    fusion = declare.load("lightning_indexer")
    scalars = {"scale": 128 ** -0.5, "head_scale": 32 ** -0.5, "top": 2048}
    maths = declare.Maths(fusion.reference, ({"B": 2, "S": 1, "L": 5000, "H": 32, "D": 128, **scalars},))
    tensors = [t.cuda() for t in traced.tensors_of(maths, torch.bfloat16)]
    run = kernels.load("lightning_indexer", "triton").run
    replay = capture.Graphs(torch.cuda, torch.device("cuda", 0))(lambda: run(*tensors, **scalars))
    for seed in (1, 2):
        for old, new in zip(tensors, traced.tensors_of(maths, torch.bfloat16, seed=seed), strict=True):
            old.copy_(new)
        made, wanted = replay(), fusion.reference(*(t.double() if t.is_floating_point() else t for t in tensors), **scalars)
        for mine, right in zip(made.flatten(0, 1).tolist(), wanted.flatten(0, 1).tolist(), strict=True):
            assert len(set(mine)) == 2048
            assert len(set(mine) ^ set(right)) <= 4, "but for scores that rounding cannot tell apart"


@pytest.mark.parametrize(("variant", "changes"), [
    ("glm4_moe", {"num_hidden_layers": 2}), ("glm4_moe_lite", {"num_hidden_layers": 2}), ("glm_moe_dsa", {})])
def test_an_artefact_starts_its_own_kernels_and_gives_transformers_tokens(variant, changes, tmp_path, recwarn):
    major, minor = torch.cuda.get_device_capability()
    config, model, checkpoint = models.published(variant, **changes)
    glmc.compile(checkpoint, tmp_path / "gpu.glmc", target=f"cuda:sm_{major}{minor}", max_len=64)
    session = glmc.load(tmp_path / "gpu.glmc")
    (ids,) = models.prompts(config["vocab_size"], 12)
    assert float((session.logits(torch.tensor([ids]))[0] - models.logits(model, ids)).abs().max()) <= 1e-3
    assert session.generate(ids, max_new_tokens=16).token_ids == models.greedy(model, ids, 16)
    assert not [w for w in recwarn if "compiled now" in str(w.message)]
