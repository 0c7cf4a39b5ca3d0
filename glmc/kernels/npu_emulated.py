"""A strict stand-in for Ascend's vendor modules, in plain torch on the CPU: for checking a program, never taken unasked.

Written from the vendors' documentation (each contract names its page), not from our references. It refuses what the real op
refuses, and where the real op would silently do something else: tensors that are not contiguous, another dtype, a layout or
a combination of arguments that is not documented.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch

from glmc.errors import InternalError
from glmc.kernels.add_rms_norm import npu as add_rms_norm
from glmc.kernels.attention import npu as attention
from glmc.kernels.grouped_mm import npu as grouped_mm
from glmc.kernels.moe_route import npu as moe_route
from glmc.kernels.npu import Contract
from glmc.kernels.rms_norm import npu as rms_norm
from glmc.kernels.rope import npu as rope
from glmc.kernels.silu_mul import npu as silu_mul
from glmc.kernels.split_qkv_norm_rope import npu as split_qkv


def _demand(contract: Contract, *dtypes: torch.dtype, **sizes: int) -> None:
    refusal = contract.refusal(*dtypes, **sizes)
    if refusal is not None:
        raise InternalError(f"the NPU would refuse this call: {refusal}", field=contract.op)


def _require(contract: Contract, holds: bool, rule: str) -> None:
    if not holds:
        raise InternalError(f"the NPU would refuse this call: {rule}", field=contract.op)


def _normed(x: torch.Tensor, gamma: torch.Tensor, epsilon: float) -> tuple[torch.Tensor, torch.Tensor]:
    wide = x.float()
    rstd = 1.0 / torch.sqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (wide * rstd * gamma.float()).to(x.dtype), rstd


def npu_rms_norm(self: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6) -> tuple[torch.Tensor, torch.Tensor]:
    """y = self / sqrt(mean(self^2) + epsilon) * gamma, and the reciprocal root in float32."""
    _demand(rms_norm.CONTRACT, self.dtype, gamma.dtype)
    _require(rms_norm.CONTRACT, gamma.shape == self.shape[-gamma.dim():], "gamma has the shape of the last dims")
    return _normed(self, gamma, epsilon)


def npu_add_rms_norm(x1: torch.Tensor, x2: torch.Tensor, gamma: torch.Tensor, epsilon: float = 1e-6,
                     ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The norm of x1 + x2, its reciprocal root, and the sum."""
    _demand(add_rms_norm.CONTRACT, x1.dtype, x2.dtype, gamma.dtype)
    _require(add_rms_norm.CONTRACT, x1.shape == x2.shape, "x1 and x2 have one shape")
    total = x1 + x2
    return (*_normed(total, gamma, epsilon), total)


def npu_swiglu(self: torch.Tensor, dim: int = -1) -> torch.Tensor:
    """The first half through SiLU, times the second."""
    _demand(silu_mul.CONTRACT, self.dtype, packed=self.shape[dim])
    first, second = self.float().chunk(2, dim)
    return (first / (1.0 + torch.exp(-first)) * second).to(self.dtype)


def npu_rotary_mul(input: torch.Tensor, r1: torch.Tensor, r2: torch.Tensor, rotary_mode: str = "half") -> torch.Tensor:
    """input * r1 + turned(input) * r2, in the layouts BSND with tables 1S1D (both modes) or BS1D (half only)."""
    contract = rope.CONTRACT
    _require(contract, input.dim() == r1.dim() == r2.dim() == 4 and r1.shape == r2.shape, "four dims each, tables alike")
    _demand(contract, input.dtype, r1.dtype, r2.dtype, heads=input.shape[2], width=input.shape[3])
    _require(contract, all(t.is_contiguous() for t in (input, r1, r2)), "contiguous tensors")
    _require(contract, r1.shape[1:] == (input.shape[1], 1, input.shape[3]), "tables 1S1D or BS1D, as wide as the input")
    if rotary_mode == "half":
        _require(contract, r1.shape[0] in (1, input.shape[0]) and input.shape[0] < 1000, "B below 1000, table rows 1 or B")
        low, high = input.chunk(2, -1)
        turned = torch.cat((-high, low), -1)
    else:
        _require(contract, rotary_mode == "interleave", "rotary_mode half or interleave")
        _require(contract, r1.shape[0] == 1 and input.shape[0] * input.shape[2] < 1000, "one table row, B * N below 1000")
        turned = torch.stack((-input[..., 1::2], input[..., ::2]), -1).flatten(-2)
    return (input.float() * r1.float() + turned.float() * r2.float()).to(input.dtype)


def npu_fused_infer_attention_score(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *,
                                    atten_mask: torch.Tensor | None = None, num_heads: int = 1, scale: float = 1.0,
                                    input_layout: str = "BSH", num_key_value_heads: int = 0, sparse_mode: int = 0,
                                    ) -> tuple[torch.Tensor, torch.Tensor]:
    """softmax(scale q k^T, hidden where the mask is true) v in the layout BSND, with grouped heads."""
    contract = attention.CONTRACT
    _require(contract, input_layout == "BSND" and sparse_mode == 0, "emulated for BSND with a full mask")
    rows, tokens, heads, width = query.shape
    _require(contract, key.shape == value.shape and key.shape[0] == rows and key.shape[3] == width, "k and v of one shape")
    _require(contract, heads == num_heads and key.shape[2] == num_key_value_heads, "the heads that the shapes have")
    _require(contract, heads % num_key_value_heads == 0, "key heads that divide the heads")
    _demand(contract, query.dtype, key.dtype, value.dtype, heads=heads, queries_per_key_head=heads // num_key_value_heads,
            width=width)
    given = [query, key, value] + ([] if atten_mask is None else [atten_mask])
    _require(contract, all(t.is_contiguous() for t in given), "contiguous tensors")
    group = heads // num_key_value_heads
    q, k, v = (t.float().permute(0, 2, 1, 3) for t in (query, key, value))
    score = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
    if atten_mask is not None:
        _require(contract, atten_mask.dtype in (torch.bool, torch.int8, torch.uint8), "a mask of bool, int8 or uint8")
        _require(contract, tuple(atten_mask.shape) == (rows, 1, tokens, key.shape[1]), "a mask [B, 1, Q_S, KV_S]")
        score = score.masked_fill(atten_mask != 0, float("-inf"))
    out = torch.softmax(score, -1) @ v.repeat_interleave(group, 1)
    return out.permute(0, 2, 1, 3).contiguous().to(query.dtype), torch.zeros(1)


def npu_moe_gating_top_k(x: torch.Tensor, k: int, *, bias: torch.Tensor | None = None, k_group: int = 1, group_count: int = 1,
                         group_select_mode: int = 0, renorm: int = 0, norm_type: int = 0, out_flag: bool = False,
                         routed_scaling_factor: float = 1.0, eps: float = 1e-20) -> tuple[torch.Tensor, ...]:
    """Sigmoid scores; the best k of score + bias in the groups whose two best sum highest; weights sum to the factor."""
    contract = moe_route.CONTRACT
    _require(contract, renorm == 0 and norm_type == 1 and group_select_mode == 1, "emulated for sigmoid, groups by two best")
    tokens, experts = x.shape
    _require(contract, experts % group_count == 0 and 1 <= k_group <= group_count, "groups that divide the experts")
    each = experts // group_count
    _require(contract, 1 <= k <= each * k_group, "k within the kept groups")
    _demand(contract, x.dtype, *(() if bias is None else (bias.dtype,)), experts=experts, group=each,
            padded=-(-each // 32) * 32 * group_count)
    score = 1.0 / (1.0 + torch.exp(-x.float()))
    choice = (score if bias is None else score + bias.float()).view(tokens, group_count, each)
    rank = choice.sort(-1, descending=True).values[..., :2].sum(-1)
    kept = torch.zeros_like(rank, dtype=torch.bool).scatter_(1, rank.topk(k_group, -1).indices, True)
    chosen = choice.masked_fill(~kept[..., None], float("-inf")).flatten(1).topk(k, -1).indices
    picked = score.gather(1, chosen)
    weight = picked / (picked.sum(-1, keepdim=True) + eps) * routed_scaling_factor
    return weight.to(x.dtype), chosen.to(torch.int32), score if out_flag else torch.empty(0)


def npu_grouped_matmul(x: list[torch.Tensor], weight: list[torch.Tensor], *, group_list: torch.Tensor, split_item: int = 0,
                       group_type: int | None = None, group_list_type: int = 0) -> list[torch.Tensor]:
    """Rows of one tensor in groups by cumulative ends, each group times its matrix of one [E, K, N] tensor."""
    contract = grouped_mm.CONTRACT
    _require(contract, len(x) == len(weight) == 1 and split_item in (2, 3) and group_type == 0 and group_list_type == 0,
             "emulated for one tensor each, groups of rows by their ends")
    rows, matrix = x[0], weight[0]
    _require(contract, rows.dim() == 2 and matrix.dim() == 3 and rows.is_contiguous(), "x [T, K] contiguous, weight [E, K, N]")
    _require(contract, matrix.is_contiguous() or matrix.transpose(1, 2).is_contiguous(), "a weight as it is, or transposed")
    _demand(contract, rows.dtype, matrix.dtype, experts=matrix.shape[0], inner=max(matrix.shape[1:]))
    ends = group_list.tolist()
    _require(contract, group_list.dtype == torch.int64 and len(ends) == matrix.shape[0], "an int64 end for each group")
    _require(contract, ends == sorted(ends) and ends[0] >= 0 and ends[-1] == len(rows), "ends that rise to the rows")
    parts = [rows[a:b].float() @ matrix[e].float() for e, (a, b) in enumerate(zip([0, *ends], ends, strict=False))]
    return [torch.cat(parts).to(rows.dtype)]


def split_qkv_rmsnorm_rope(input: torch.Tensor, sin: torch.Tensor, cos: torch.Tensor, q_hidden_size: int, kv_hidden_size: int,
                           head_dim: int, eps: float | None = None, q_weight: torch.Tensor | None = None,
                           k_weight: torch.Tensor | None = None, q_bias: torch.Tensor | None = None,
                           k_bias: torch.Tensor | None = None, is_neox_style: bool = True) -> tuple[torch.Tensor, ...]:
    """Split, norm of each head where eps is given, RoPE over the table's width: float32 throughout, one rounding."""
    contract = split_qkv.CONTRACT
    rows, rotary = input.shape[0], sin.shape[-1]
    _require(contract, input.dim() == 2 and input.shape[1] == q_hidden_size + 2 * kv_hidden_size, "input [B, q + 2 kv]")
    _require(contract, input.is_contiguous() and sin.is_contiguous() and cos.is_contiguous(), "contiguous tensors")
    _require(contract, sin.numel() == cos.numel() == rows * rotary and rotary <= head_dim, "tables [B, 1, 1, rotary]")
    norm = (eps is not None, q_weight is not None, k_weight is not None)
    _require(contract, len(set(norm)) == 1, "eps with both weights, or none of them")
    _require(contract, (q_bias is None) == (k_bias is None) and (q_bias is None or norm[0]), "both biases, after a norm")
    _demand(contract, input.dtype, head_dim=head_dim, remainder_of_heads=q_hidden_size % kv_hidden_size)
    q, k, v = input.float().split([q_hidden_size, kv_hidden_size, kv_hidden_size], -1)
    s, c = (t.reshape(rows, 1, rotary).float() for t in (sin, cos))

    def made(part: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor:
        heads = part.reshape(rows, -1, head_dim)
        if eps is not None and weight is not None:
            heads = heads / torch.sqrt(heads.square().mean(-1, keepdim=True) + eps) * weight.float()
        if bias is not None:
            heads = heads + bias.float()
        turning, passing = heads[..., :rotary], heads[..., rotary:]
        if is_neox_style:
            low, high = turning.chunk(2, -1)
            turned = torch.cat((-high, low), -1) * s + turning * c
        else:
            angle_s, angle_c = (t[..., : rotary // 2].repeat_interleave(2, -1) for t in (s, c))
            turned = torch.stack((-turning[..., 1::2], turning[..., ::2]), -1).flatten(-2) * angle_s + turning * angle_c
        return torch.cat((turned, passing), -1).reshape(rows, -1).to(input.dtype)

    return made(q, q_weight, q_bias), made(k, k_weight, k_bias), v.to(input.dtype).contiguous()


MODULES = {
    "torch_npu": SimpleNamespace(npu_rms_norm=npu_rms_norm, npu_add_rms_norm=npu_add_rms_norm, npu_swiglu=npu_swiglu,
                                 npu_rotary_mul=npu_rotary_mul, npu_moe_gating_top_k=npu_moe_gating_top_k,
                                 npu_fused_infer_attention_score=npu_fused_infer_attention_score,
                                 npu_grouped_matmul=npu_grouped_matmul),
    split_qkv.MODULE: SimpleNamespace(split_qkv_rmsnorm_rope=split_qkv_rmsnorm_rope),
}
"""Module -> what it offers here. Nothing else of the vendor's is emulated."""
