"""The same passes under dynamo: `torch.compile(model, backend="glmc")` on a stock transformers model, and its ledger.

    python examples/torch_compile.py
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import glmc
from glmc.families import glm4_moe


def main() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{**glm4_moe.TINY, "num_hidden_layers": 1})
    model = AutoModelForCausalLM.from_config(config).eval()
    compiled = torch.compile(model, backend="glmc", fullgraph=True)
    with torch.no_grad():
        for length in (7, 9, 12):  # one graph for the first length, one for all others
            ids = torch.randint(2, config.vocab_size, (1, length))
            print(f"{length} tokens: largest difference from eager "
                  f"{(compiled(ids).logits - model(ids).logits).abs().max():.0e}")
    print(glmc.ledger_of(compiled).text())


if __name__ == "__main__":
    main()
