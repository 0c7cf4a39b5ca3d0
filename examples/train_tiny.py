"""Trains a small GLM-4.5 (`Glm4MoeForCausalLM`) from scratch on shipped text and writes its Hugging Face checkpoint.

    python examples/train_tiny.py --out my-tiny-glm4-moe

About forty minutes on one core of a server CPU; `--steps 2` shows that the road works in seconds. The folder has what a
published checkpoint has: configuration, per-expert bfloat16 weights, tokenizer, chat template, a README with samples.
"""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tiny_text import (
    CHAT_TEMPLATE,
    END,
    IGNORED,
    USER,
    VOCAB_SIZE,
    Rows,
    held_out_rows,
    read_chapters,
    split_held_out,
    train_tokenizer,
)
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    PreTrainedTokenizerFast,
)

from glmc.errors import GlmcError, NumericError, OutputExists, UsageError

PROMPTS = ("In the beginning God", "And Jesus answered and said unto them,", "The LORD is my")
CHAT_PROMPT = "Continue this verse: And it came to pass in those days, that"


def tiny_config(tokenizer: PreTrainedTokenizerFast) -> Glm4MoeConfig:
    """GLM-4.5 with every part present and every size small: 4.9 million parameters, 2.5 million active per token."""
    end, user = tokenizer.convert_tokens_to_ids([END, USER])
    return Glm4MoeConfig(
        vocab_size=VOCAB_SIZE, hidden_size=256, intermediate_size=640, moe_intermediate_size=128,
        num_hidden_layers=4, first_k_dense_replace=1, num_attention_heads=8, num_key_value_heads=2, head_dim=32,
        n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, n_group=1, topk_group=1,
        norm_topk_prob=True, routed_scaling_factor=1.0, use_qk_norm=True, attention_bias=True,
        partial_rotary_factor=0.5, rope_parameters={"rope_type": "default", "rope_theta": 10000.0,
                                                    "partial_rotary_factor": 0.5},
        max_position_embeddings=2048, tie_word_embeddings=False, num_mtp_layers=0,
        eos_token_id=[end, user], pad_token_id=end,
    )


class LoadBalance:
    """Auxiliary-loss-free balancing (DeepSeek-V3): after each step the correction bias of every expert moves by
    `rate` towards the experts that were chosen too rarely. The bias steers the choice only, never the weights."""

    def __init__(self, model: Glm4MoeForCausalLM, rate: float) -> None:
        self.rate = rate
        self.gates = [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]
        self.counts = [torch.zeros(gate.num_experts) for gate in self.gates]
        for i, gate in enumerate(self.gates):
            gate.register_forward_hook(lambda module, _, out, i=i: self._count(i, module, out[2]))

    def _count(self, i: int, gate: torch.nn.Module, chosen: torch.Tensor) -> None:
        if gate.training:
            self.counts[i] += torch.bincount(chosen.flatten(), minlength=gate.num_experts)

    @torch.no_grad()
    def step(self) -> float:
        """Moves every bias once; returns the busiest expert's load over the mean load (1.0 is perfect balance)."""
        worst = max(float(c.max() / c.mean()) for c in self.counts)
        for gate, count in zip(self.gates, self.counts, strict=True):
            gate.e_score_correction_bias += self.rate * torch.sign(count.mean() - count)
            count.zero_()
        return worst


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 3 % of the steps (100 at most), then a cosine down to 3 % of `peak`."""
    warmup = max(1, min(100, steps * 3 // 100))
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * done)))


def new_optimizer(model: Glm4MoeForCausalLM) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves norms and biases alone; the learning rate is set at each step."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)


@torch.no_grad()
def held_out_loss(model: Glm4MoeForCausalLM, rows: list[list[int]]) -> float:
    """Mean cross entropy in nats per token over `rows` (lists of length + 1 ids)."""
    model.eval()
    total = 0.0
    for i in range(0, len(rows), 16):
        batch = torch.tensor(rows[i:i + 16])
        logits = model(batch[:, :-1], use_cache=False).logits.float()
        total += float(functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"))
    model.train()
    return total / sum(len(row) - 1 for row in rows)


def train(model: Glm4MoeForCausalLM, rows: Rows, held_out: list[list[int]], args: argparse.Namespace,
          save: Callable[[], None]) -> None:
    """Runs `args.steps` steps, reports on stderr, and calls `save()` every `args.save_every`. Raises NumericError."""
    optimizer, balance = new_optimizer(model), LoadBalance(model, args.balance_rate)
    model.train()
    begun, mean_loss = time.monotonic(), 0.0
    for step in range(args.steps):
        rate = learning_rate(step, args.steps, args.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, labels = (torch.tensor(t) for t in zip(*(rows.draw() for _ in range(args.batch)), strict=True))
        logits = model(ids, use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        nats = float(loss.detach())
        if not math.isfinite(nats):
            raise NumericError("the training loss is not finite", field=f"step {step}", found=nats,
                               hint="lower --learning-rate")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        # The last tenth runs with the bias at rest, so that the router it belongs to can settle around it.
        busiest = balance.step() if step < args.steps * 9 // 10 else math.nan
        mean_loss = nats if step == 0 else 0.98 * mean_loss + 0.02 * nats
        if step % 20 == 19:
            print(f"step {step + 1}/{args.steps} loss {mean_loss:.3f} rate {rate:.2e} busiest expert {busiest:.2f}x "
                  f"{(time.monotonic() - begun) / (step + 1):.3f} s a step", file=sys.stderr, flush=True)
        if step % 250 == 249:
            loss_now = held_out_loss(model, held_out[:32])
            print(f"step {step + 1}: held-out perplexity {math.exp(loss_now):.2f} on 32 rows", file=sys.stderr)
        if args.save_every and (step + 1) % args.save_every == 0 and step + 1 < args.steps:
            save()


def samples(folder: Path) -> list[tuple[str, str]]:
    """(prompt, greedy continuation of at most 48 tokens) pairs, from the checkpoint in `folder` loaded anew."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    chat = tokenizer.apply_chat_template([{"role": "user", "content": CHAT_PROMPT}], add_generation_prompt=True,
                                         tokenize=False)
    shown = []
    for prompt in (*PROMPTS, chat):
        ids = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**ids, max_new_tokens=48, do_sample=False)
        shown.append((prompt, tokenizer.decode(out[0, ids["input_ids"].shape[1]:])))
    return shown


def write_checkpoint(folder: Path, model: Glm4MoeForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Writes `folder` anew through a neighbouring temporary folder, so that a reader never sees half of it."""
    config = model.config
    half = Glm4MoeForCausalLM(config).to(torch.bfloat16)
    state = {k: v if k.endswith("e_score_correction_bias") else v.to(torch.bfloat16)
             for k, v in model.state_dict().items()}   # published checkpoints keep the bias in float32
    half.load_state_dict(state, assign=True)
    half.config.dtype = torch.bfloat16
    half.generation_config = GenerationConfig(eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id)
    new = folder.with_name(folder.name + ".new")
    if new.exists():
        shutil.rmtree(new)
    half.save_pretrained(new)
    tokenizer.save_pretrained(new)
    (new / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def write_readme(folder: Path, model: Glm4MoeForCausalLM, loss: float, args: argparse.Namespace) -> None:
    """Writes README.md: what it is, source and licence of the text, command, held-out loss, samples."""
    command = (f"python examples/train_tiny.py --out {folder.name} --steps {args.steps} --batch {args.batch} "
               f"--length {args.length} --learning-rate {args.learning_rate} --seed {args.seed}")
    shown = "\n\n".join(f"**{p!r}**\n\n```text\n{text}\n```" for p, text in samples(folder))
    parameters = sum(p.numel() for p in model.parameters())
    (folder / "README.md").write_text(f"""---
license: apache-2.0
language: en
---

# {folder.name}

A small `Glm4MoeForCausalLM` ({parameters:,} parameters, bfloat16), trained from scratch by `examples/train_tiny.py`.
It has every part of GLM-4.5 but multi-token prediction (half-width rotary embedding, query and key norms, attention
biases, a dense first layer, routed and shared experts, a correction bias that balanced the experts in
training), a real tokenizer and a chat template. It is there to be compiled, run and measured; it knows one book and
nothing else.

- Text: the King James Bible of 1611 (public domain); origin in `examples/data/README.md`.
- Held out: every twentieth chapter. Loss there, before rounding to
  bfloat16, {loss:.4f} nats a token, perplexity {math.exp(loss):.2f} ({VOCAB_SIZE} tokens in the vocabulary).
- Made by `{command}`
- It stops at `<|endoftext|>`, and in chat at `<|user|>`.
- Licence of the weights: Apache-2.0.

## Greedy samples (transformers, bfloat16, 48 new tokens at most)

{shown}
""")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options, checked. Raises UsageError and OutputExists."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write; must not exist")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=8, help="rows in a step")
    parser.add_argument("--length", type=int, default=192, help="tokens in a row")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--balance-rate", type=float, default=1e-3, help="how far a correction bias moves in a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=0, help="write the folder every so many steps too")
    args = parser.parse_args(argv)
    for name in ("steps", "batch", "threads"):
        if getattr(args, name) < 1:
            raise UsageError("a count must be positive", field=f"--{name}", expected=">= 1", found=getattr(args, name))
    if not 8 <= args.length <= 2047:
        raise UsageError("the row length is out of bounds", field="--length", expected="8 to 2047", found=args.length)
    if args.out.exists():
        raise OutputExists("the output folder exists", file=args.out, hint="choose another --out")
    return args


def main(argv: list[str] | None = None) -> None:
    """Trains and writes the folder named by `--out`."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    training, held_out_chapters = split_held_out(read_chapters())
    tokenizer = train_tokenizer(training)
    rows = Rows(tokenizer, training, args.length, args.seed)
    held_out = held_out_rows(tokenizer, held_out_chapters, args.length)
    model = Glm4MoeForCausalLM._from_config(tiny_config(tokenizer), experts_implementation="eager")
    train(model, rows, held_out, args, lambda: write_checkpoint(args.out, model, tokenizer))
    loss = held_out_loss(model, held_out if args.steps >= 100 else held_out[:8])
    print(f"held-out loss {loss:.4f}, perplexity {math.exp(loss):.2f}", file=sys.stderr)
    write_checkpoint(args.out, model, tokenizer)
    write_readme(args.out, model, loss, args)
    print(args.out)


if __name__ == "__main__":
    try:
        main()
    except GlmcError as fault:
        print(fault, file=sys.stderr)
        sys.exit(fault.exit)
