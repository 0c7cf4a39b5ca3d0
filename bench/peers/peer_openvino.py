"""OpenVINO as a peer: the stateful IR of optimum-intel, driven through an infer request of our own.

    PYTHON bench/peers/peer_openvino.py --model FOLDER --threads 2

As GenAI does, the head is cut to the last position, so that a prompt's other logits are not computed. Activations are
bfloat16. Variants: `direct` leaves the precision of the KV cache to OpenVINO (its choice is in the peer's name);
`direct-kv16` asks for a bfloat16 cache, which is what the other 16-bit peers have.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from serve import Peer, options, serve

VARIANTS = ("direct", "direct-kv16")


def last_only(model: ov.Model) -> None:
    """Give the head only the last position: its product is then [batch, 1, vocabulary]."""
    head = model.output("logits").get_node().input_value(0).get_node()
    while head.get_type_name() != "MatMul":  # a conversion to float32 may follow
        head = head.input_value(0).get_node()
    start, stop, step, axis = (ops.constant(np.array([value], dtype=np.int64)) for value in (-1, np.iinfo(np.int64).max, 1, 1))
    head.input(0).replace_source_output(ops.slice(head.input_value(0), start, stop, step, axis).output(0))
    model.validate_nodes_and_infer_types()


class OpenVino(Peer):
    """One compiled model and one request; the request holds the cache."""

    def __init__(self, folder: Path, threads: int, variant: str) -> None:
        core = ov.Core()
        model = core.read_model(folder / "openvino_model.xml")
        last_only(model)
        asked = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY",
                 "NUM_STREAMS": 1, "ENABLE_CPU_PINNING": False}
        if variant == "direct-kv16":
            asked["KV_CACHE_PRECISION"] = "bf16"
        compiled = core.compile_model(model, "CPU", asked)
        self.request = compiled.create_infer_request()
        self.vocabulary = model.output("logits").get_partial_shape()[2].get_length()
        cache = compiled.get_property("KV_CACHE_PRECISION").to_string()
        used = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.name = f"OpenVINO {folder.name}, computes in {used}, cache {cache}"
        self.version = f"openvino {ov.get_version()}"

    def prepare(self, batch: int, prompt: int, steps: int) -> None:
        self.ones = np.ones(batch * (prompt + steps + 1), dtype=np.int64)
        self.positions = np.tile(np.arange(prompt, dtype=np.int64), (batch, 1))
        self.rows = np.arange(batch, dtype=np.int32)
        self.batch, self.filled = batch, 0

    def _infer(self, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """The greedy token of each row, [batch]."""
        self.filled += ids.shape[1]
        mask = self.ones[:self.batch * self.filled].reshape(self.batch, self.filled)
        made = self.request.infer({"input_ids": ids, "attention_mask": mask, "position_ids": positions,
                                   "beam_idx": self.rows}, share_inputs=True, share_outputs=True)
        return made["logits"][:, -1].argmax(-1)

    def read(self, prompts: list[list[int]]) -> list[int]:
        self.request.reset_state()
        self.filled = 0
        return self._infer(np.array(prompts, dtype=np.int64), self.positions).tolist()

    def write(self, tokens: list[int], steps: int) -> list[list[int]]:
        made = []
        ids = np.array(tokens, dtype=np.int64).reshape(-1, 1)
        for _ in range(steps):
            ids = self._infer(ids, np.full((self.batch, 1), self.filled, dtype=np.int64)).astype(np.int64).reshape(-1, 1)
            made.append(ids)
        return np.concatenate(made, 1).tolist()


def main() -> None:
    given = options(__doc__, VARIANTS).parse_args()
    serve(lambda: OpenVino(given.model, given.threads, given.variant))


if __name__ == "__main__":
    main()
