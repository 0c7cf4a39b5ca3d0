"""ONNX Runtime GenAI as a peer, over the Llama-shaped stand-in that ort_files.py makes.

    PYTHON bench/peers/peer_ort.py --model FOLDER --threads 2
"""

from __future__ import annotations

import json
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnxruntime_genai as genai
from serve import Peer, Timed, options, serve


class Ort(Peer):
    """One model; every run has a generator of its own, made before the clock."""

    def __init__(self, folder: Path, threads: int) -> None:
        config = genai.Config(str(folder))
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
        self.model = genai.Model(config)
        self.vocabulary = json.loads((folder / "genai_config.json").read_text())["model"]["vocab_size"]
        self.name = f"ONNX Runtime GenAI {folder.name}, a Llama of the same size (it has no GLM-4)"
        self.version = f"onnxruntime-genai {version('onnxruntime-genai')}, onnxruntime {version('onnxruntime')}"

    def run(self, prompts: list[list[int]], steps: int) -> Timed:
        length = len(prompts[0])
        params = genai.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, batch_size=len(prompts), max_length=length + steps + 1,
                                  min_length=length + steps + 1)
        generator = genai.Generator(self.model, params)
        ids = np.array(prompts, dtype=np.int32)
        began = time.perf_counter()
        generator.append_tokens(ids)
        generator.generate_next_token()
        read = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        done = time.perf_counter()
        rows = [[int(token) for token in generator.get_sequence(row)[length:]] for row in range(len(prompts))]
        if any(len(row) != steps + 1 for row in rows):
            raise RuntimeError(f"asked for {steps + 1} tokens a row, got {[len(row) for row in rows]}")
        return Timed(read - began, done - read if steps else 0.0, rows)


def main() -> None:
    given = options(__doc__).parse_args()
    serve(lambda: Ort(given.model, given.threads))


if __name__ == "__main__":
    main()
