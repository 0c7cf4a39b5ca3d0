"""The same passes under dynamo: `torch.compile(module, backend="glmc")` on one published decoder layer.

    python examples/torch_compile.py
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from glmc import backend
from glmc.families import glm4_moe


def main() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**glm4_moe.TINY)).eval()
    layer = model.model.layers[0]
    hidden = torch.randn(1, 7, glm4_moe.TINY["hidden_size"])
    angles = model.model.rotary_emb(hidden, torch.arange(7)[None])

    def run(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return layer(x, position_embeddings=(cos, sin))

    with torch.no_grad():
        compiled = torch.compile(run, backend="glmc")(hidden, *angles)
        print(f"largest difference from eager: {(compiled - run(hidden, *angles)).abs().max():.2e}")
    print(backend.last_ledger.text())


if __name__ == "__main__":
    main()
