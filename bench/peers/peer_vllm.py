"""vLLM's CPU build as a peer: its engine in this process, stepped by hand.

    PYTHON bench/peers/peer_vllm.py --model FOLDER --threads 2 [--variant compiled|eager]

bfloat16, no tokenizer, prefix caching off, the whole prompt in one step, output of a step taken before the next is planned.
`compiled` is vLLM's default, `eager` leaves its torch.compile out.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from serve import Peer, Timed, options, serve

VARIANTS = ("compiled", "eager")
LONGEST, ROWS = 4096, 8


class Vllm(Peer):
    """One engine; every run adds its requests and steps until they are done."""

    def __init__(self, folder: Path, threads: int, variant: str) -> None:
        # Read when vLLM is imported.
        os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING",
                       "VLLM_CPU_OMP_THREADS_BIND": f"0-{threads - 1}", "OMP_NUM_THREADS": str(threads),
                       "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        import vllm

        self.vllm = vllm
        self.engine = vllm.LLM(str(folder), skip_tokenizer_init=True, enable_prefix_caching=False, dtype="bfloat16",
                               max_model_len=LONGEST, max_num_seqs=ROWS, max_num_batched_tokens=ROWS * LONGEST,
                               enforce_eager=variant == "eager", async_scheduling=False).llm_engine
        self.vocabulary = self.engine.model_config.get_vocab_size()
        self.name, self.version = f"vLLM {variant}", f"vllm {vllm.__version__}"
        self.count = 0

    def prepare(self, batch: int, prompt: int, steps: int) -> None:
        if batch > ROWS or prompt + steps + 1 > LONGEST:
            raise ValueError(f"this engine takes {ROWS} rows of {LONGEST} tokens")

    def run(self, prompts: list[list[int]], steps: int) -> Timed:
        kind = self.vllm.sampling_params.RequestOutputKind.DELTA
        params = self.vllm.SamplingParams(temperature=0.0, max_tokens=steps + 1, ignore_eos=True, detokenize=False,
                                          output_kind=kind)
        names = [str(self.count + row) for row in range(len(prompts))]
        self.count += len(prompts)
        began = time.perf_counter()
        for name, prompt in zip(names, prompts, strict=True):
            self.engine.add_request(name, {"prompt_token_ids": prompt}, params)
        rows: dict[str, list[int]] = {name: [] for name in names}
        read = 0.0
        while self.engine.has_unfinished_requests():
            for made in self.engine.step():
                rows[made.request_id].extend(made.outputs[0].token_ids)
            if not read and all(rows.values()):
                read = time.perf_counter()
        done = time.perf_counter()
        if any(len(row) != steps + 1 for row in rows.values()):
            raise RuntimeError(f"asked for {steps + 1} tokens a row, got {[len(row) for row in rows.values()]}")
        return Timed(read - began, done - read if steps else 0.0, list(rows.values()))


def main() -> None:
    given = options(__doc__, VARIANTS).parse_args()
    serve(lambda: Vllm(given.model, given.threads, given.variant))


if __name__ == "__main__":
    main()
