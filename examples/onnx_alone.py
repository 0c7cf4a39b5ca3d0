"""Generate from an artefact of target `onnx` with numpy, onnxruntime and tokenizers alone: no glmc, no torch.

    glmc compile examples/tiny-glm4-moe -o tiny.glmc --target onnx
    python examples/onnx_alone.py tiny.glmc "And God said,"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer


class Model:
    """One row of `slots` tokens. New keys and values are written in place: a cache is bound as input and as output."""

    def __init__(self, folder: Path, slots: int) -> None:
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        self.bound = self.session.io_binding()
        self.caches = {given.name: np.zeros((1, slots, *given.shape[2:]), np.float32)
                       for given in self.session.get_inputs() if given.name.startswith("past.")}
        for name, cache in self.caches.items():
            self.bound.bind_input(name, "cpu", 0, cache.dtype, cache.shape, cache.ctypes.data)
            self.bound.bind_output(name.replace("past.", "present."), "cpu", 0, cache.dtype, cache.shape, cache.ctypes.data)

    def __call__(self, ids: list[int], start: int) -> np.ndarray:
        """Run new tokens from slot `start` on; the logits of the last one."""
        self.bound.bind_cpu_input("input_ids", np.array([ids]))
        self.bound.bind_cpu_input("positions", np.arange(start, start + len(ids))[None])
        self.bound.bind_cpu_input("rows", np.array([len(ids) - 1]))
        self.bound.bind_output("logits")
        self.session.run_with_iobinding(self.bound)
        return self.bound.get_outputs()[-1].numpy()[0, -1]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("artifact", type=Path, help="made by `glmc compile ... --target onnx`")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args(argv)
    tokenizer = Tokenizer.from_file(str(options.artifact / "tokenizer.json"))
    ids = tokenizer.encode(options.prompt, add_special_tokens=False).ids
    model = Model(options.artifact, len(ids) + options.tokens)
    new, made = ids, []
    for _ in range(options.tokens):
        logits = model(new, len(ids) + len(made) - len(new))
        new = [int(logits.argmax())]
        made += new
    print(options.prompt + tokenizer.decode(made))


if __name__ == "__main__":
    main()
