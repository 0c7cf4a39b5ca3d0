"""OpenVINO GenAI as a peer: its continuous batching pipeline (paged attention), stepped by hand.

    PYTHON bench/peers/peer_openvino_genai.py --model FOLDER --threads 2

Prefix caching is off: the same prompt is read again in every run. A whole prompt goes into one step. The folder is the one
that openvino_files.py writes.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from serve import Peer, Timed, options, serve


class GenAi(Peer):
    """One pipeline; every run adds its requests and steps until they are done."""

    def __init__(self, folder: Path, threads: int) -> None:
        scheduler = genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = 1 << 16
        scheduler.cache_size = 1
        self.pipe = genai.ContinuousBatchingPipeline(folder, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})
        head = ov.Core().read_model(folder / "openvino_model.xml").output("logits")
        self.vocabulary = head.get_partial_shape()[2].get_length()
        self.name, self.version = f"OpenVINO GenAI {folder.name}", f"openvino-genai {genai.get_version()}"
        self.count = 0

    def run(self, prompts: list[list[int]], steps: int) -> Timed:
        config = genai.GenerationConfig(max_new_tokens=steps + 1, ignore_eos=True, do_sample=False)
        inputs = [ov.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        began = time.perf_counter()
        handles = [self.pipe.add_request(self.count + row, tensor, config) for row, tensor in enumerate(inputs)]
        self.count += len(prompts)
        rows: list[list[int]] = [[] for _ in prompts]
        read = 0.0
        while self.pipe.has_non_finished_requests():
            self.pipe.step()
            for row, handle in zip(rows, handles, strict=True):
                if handle.can_read():
                    for made in handle.read().values():
                        row.extend(made.generated_ids)
            if not read and all(rows):
                read = time.perf_counter()
        done = time.perf_counter()
        if any(len(row) != steps + 1 for row in rows):
            raise RuntimeError(f"asked for {steps + 1} tokens a row, got {[len(row) for row in rows]}")
        return Timed(read - began, done - read if steps else 0.0, rows)


def main() -> None:
    given = options(__doc__).parse_args()
    serve(lambda: GenAi(given.model, given.threads))


if __name__ == "__main__":
    main()
