"""How far bfloat16 logits lie from a float64 run: glmc's error beside transformers' own, for every family that compiles."""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from compile_once import WORK
from report import Report, default_out

BAR = 2.0
WIDER = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
         "intermediate_size": 512, "vocab_size": 1000}
WIDER_EXPERTS = {"moe_intermediate_size": 128, "n_routed_experts": 16, "num_experts_per_tok": 4}
HOW = ("random checkpoints, every parameter drawn from a seed, bfloat16. The reference is transformers in float64 "
       "with the same (bfloat16) weights; an error is |logit - reference|, most and mean over all prompts; a figure "
       "is glmc's error over transformers' bfloat16 error, the median over the seeds")


def configs(family: str, sizes: list[str]) -> dict[str, dict[str, Any]]:
    """The family's configurations by size: "tiny" as its file has it, "wider"."""
    from glmc import families

    tiny = {**families.load({"model_type": family}).TINY, "torch_dtype": "bfloat16", "eos_token_id": None}
    wider = {**tiny, **WIDER, **(WIDER_EXPERTS if "n_routed_experts" in tiny else {})}
    return {size: {"tiny": tiny, "wider": wider}[size] for size in sizes}


def reference(config: dict[str, Any], model, prompts):
    """Float64 logits [B, S, vocabulary] of the published class with `model`'s weights, experts computed one by one."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {k: v for k, v in config.items() if k != "torch_dtype"}
    experts = {"experts_implementation": "eager"} if "n_routed_experts" in config else {}
    exact = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields), dtype=torch.float64, **experts).eval()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    with torch.no_grad():
        return exact.double()(prompts).logits


def errors(logits, exact) -> dict[str, float]:
    """Most and mean absolute difference."""
    away = (logits.double() - exact).abs()
    return {"max": away.max().item(), "mean": away.mean().item()}


def one(folder: Path, config: dict[str, Any], targets: list[str], seed: int, rows: int, tokens: int) -> dict[str, Any]:
    """Errors of transformers and of glmc by target, on `rows` prompts of `tokens` tokens."""
    import torch
    from checkpoints import randomised

    import glmc

    model = randomised(folder / "checkpoint", config, seed)
    prompts = torch.randint(1, config["vocab_size"], (rows, tokens), generator=torch.Generator().manual_seed(seed + 1))
    exact = reference(config, model, prompts)
    with torch.no_grad():
        found = {"transformers": errors(model(prompts).logits, exact)}
    for target in targets:
        glmc.compile(folder / "checkpoint", folder / f"{target}.glmc", target=target, dtype="bfloat16",
                     max_len=max(tokens, 64))
        found[target] = errors(glmc.load(folder / f"{target}.glmc").logits(prompts), exact)
    return {**found, "scale": exact.abs().max().item(), "seed": seed}


def main() -> None:
    from glmc import families

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--families", default=",".join(families.compiled()))
    options.add_argument("--sizes", default="tiny,wider")
    options.add_argument("--targets", default="fx,cpu")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--rows", type=int, default=8)
    options.add_argument("--tokens", type=int, default=32)
    options.add_argument("--out", type=Path, default=default_out("parity_bfloat16"))
    given = options.parse_args()
    os.environ.setdefault("GLMC_CACHE", str(WORK / "regions"))
    report = Report("parity_bfloat16", given.out)
    targets = given.targets.split(",")
    details: dict[str, Any] = {}
    for family in given.families.split(","):
        for size, config in configs(family, given.sizes.split(",")).items():
            runs = []
            for seed in range(given.seeds):
                with tempfile.TemporaryDirectory(prefix="glmc-bench-") as scratch:
                    runs.append(one(Path(scratch), config, targets, seed, given.rows, given.tokens))
            details[f"{family} {size}"] = runs
            for target in targets:
                for kind in ("max", "mean"):
                    ratio = statistics.median(r[target][kind] / r["transformers"][kind] for r in runs)
                    report.add(f"{family} {size}, {target}: {kind} error over transformers'", ratio, "x", BAR)
    report.finish(HOW, {"rows": given.rows, "tokens": given.tokens, "seeds": given.seeds, "errors": details})


if __name__ == "__main__":
    main()
