"""Decoding with routed experts kept as a quantised checkpoint has them, beside the same shape in bfloat16.

    python bench/quantised.py [--rounds 7] [--folder WHERE_CHECKPOINTS_AND_ARTEFACTS_GO]
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import fresh_process
from cpu import LOADS, measured, started
from pour import KINDS
from report import ROOT, Report, default_out

BAR = 1.5
COMMON: dict[str, Any] = {
    "hidden_act": "silu", "hidden_size": 1024, "intermediate_size": 4096, "moe_intermediate_size": 512, "n_routed_experts": 32,
    "num_experts_per_tok": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
    "routed_scaling_factor": 1.0, "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "pad_token_id": 0, "eos_token_id": None}
LATENT = {"num_attention_heads": 16, "num_key_value_heads": 16, "q_lora_rank": 512, "kv_lora_rank": 256, "qk_nope_head_dim": 96,
          "qk_rope_head_dim": 32, "v_head_dim": 128, "attention_bias": False,
          "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
MODELS: dict[str, dict[str, Any]] = {
    "glm4_moe": {**COMMON, "model_type": "glm4_moe", "architectures": ["Glm4MoeForCausalLM"], "num_hidden_layers": 13,
                 "first_k_dense_replace": 1, "num_attention_heads": 16, "num_key_value_heads": 2, "head_dim": 64,
                 "attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 1000000.0, "use_qk_norm": True},
    "glm4_moe_lite": {**COMMON, **LATENT, "model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"],
                      "num_hidden_layers": 13, "first_k_dense_replace": 1},
    "glm_moe_dsa": {**COMMON, **LATENT, "model_type": "glm_moe_dsa", "architectures": ["GlmMoeDsaForCausalLM"],
                    "num_hidden_layers": 13, "first_k_dense_replace": 1, "index_head_dim": 64, "index_n_heads": 8,
                    "index_topk": 512, "indexer_types": ["full", *["full", "shared", "shared", "shared"] * 3]},
}
"""Models of about 750 M parameters, most of them routed experts, of which a quarter is read for a token."""
WANTED = ("decode-64", "decode-2048", "prefill-256", "batch-8")
HOW = ("Random weights; routed experts are in the form named, everything else in bfloat16. Each form is a process of its own "
       "with two threads, all loaded; they answer one request at a time in an order that shifts each round. Rates are medians "
       "in tokens a second, ratios are to bfloat16 in the same rounds; 7 rounds unless the command says otherwise")


def make(folder: Path, family: str, kind: str) -> Path:
    """A checkpoint poured and compiled, both in processes of their own; the artefact."""
    config = folder / f"{family}.json"
    config.write_text(json.dumps(MODELS[family]))
    checkpoint, out = folder / f"{family}-{kind}", folder / f"{family}-{kind}.glmc"
    fresh_process.run(fresh_process.python(ROOT / "bench" / "pour.py", config, checkpoint, "--kind", kind))
    fresh_process.run(fresh_process.python("-m", "glmc", "compile", checkpoint, "-o", out, "--max-batch", 8))
    shutil.rmtree(checkpoint)
    return out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--families", default=",".join(MODELS))
    options.add_argument("--loads", default=",".join(WANTED))
    options.add_argument("--folder", type=Path)
    options.add_argument("--out", type=Path, default=default_out("quantised"))
    given = options.parse_args()
    report, details = Report("quantised", given.out), {}
    folder = Path(tempfile.mkdtemp(prefix="glmc-bench-", dir=given.folder))
    try:
        for family in given.families.split(","):
            arts = {kind: make(folder, family, kind) for kind in KINDS}
            sizes = {kind: sum(p.stat().st_size for p in art.glob("weights-*")) for kind, art in arts.items()}
            peer = ROOT / "bench" / "peers" / "peer_glmc.py"
            commands = {kind: fresh_process.python(peer, "--model", art, "--threads", 2) for kind, art in arts.items()}
            details[family] = {"config": MODELS[family], "weights_bytes": sizes}
            with started(commands) as contenders:
                for load in given.loads.split(","):
                    found = measured(LOADS[load], contenders, given.rounds)
                    rates = {kind: s["median"] for kind, s in found["tokens_per_second"].items()}
                    details[family][load] = found
                    for kind in KINDS[1:]:
                        bar = BAR if (load, kind) == ("decode-64", "mxfp4") else None
                        ratio = rates[kind] / rates["bfloat16"]
                        report.add(f"{family}, {load}: {kind} over bfloat16", ratio, "x", bar, "higher")
            for kind in KINDS[1:]:
                report.add(f"{family}: weights in {kind} over bfloat16", sizes[kind] / sizes["bfloat16"], "x")
            for art in arts.values():
                shutil.rmtree(art)
    finally:
        shutil.rmtree(folder)
    report.finish(HOW, details)


if __name__ == "__main__":
    main()
