"""Engine `onnx`: a model as one session of ONNX Runtime on the CPU, opened from the verified files.

The cache is ours: each layer's keys and values are bound as what the model reads and as what it writes, so that new tokens are
written in place and nothing else is copied. What `open` offers is one region by itself, out of the same model, for comparing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact
from glmc.kernels.onnx import call, vendor
from glmc.program import ONNX, Region
from glmc.region import written
from glmc.runtime.device import Device
from glmc.runtime.memory import slots_of
from glmc.runtime.prompt import Placed

PIECE = 1024
"""Tokens of a prompt that are run at once: attention's scores do not grow with the square of the prompt."""
_STEP = 32
"""Slots by which the view of the cache grows: what is bound stays for as many tokens."""
_PROVIDER = "CPUExecutionProvider"


class Session:
    """The text model, its cache and what is bound. Logits are float32 on the host, valid until the next call."""

    def __init__(self, artifact: Artifact, threads: int) -> None:
        """Raises DamagedArtifact, UnsupportedTarget where ONNX Runtime is not installed."""
        runtime = vendor("onnxruntime")
        artifact.verify(threads)
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 3
        path = artifact.path(ONNX)
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=[_PROVIDER])
        except Exception as fault:
            raise DamagedArtifact("ONNX Runtime does not open the model", file=path, found=str(fault)) from fault
        self.bound = self.session.io_binding()
        self.inputs = {given.name: given for given in self.session.get_inputs()}
        bounds, (self.least, most) = artifact.manifest["bounds"], slots_of(artifact.manifest)
        self.cache = Cache({name.removeprefix("past."): given.shape[2:] for name, given in self.inputs.items()
                            if name.startswith("past.")}, bounds["max_batch"], most)
        self.width = self.session.get_outputs()[0].shape[-1]
        features = next((given.shape for name, given in self.inputs.items() if name == "features"), None)
        self.features = None if features is None else np.zeros((1, features[1]), np.float32)
        self.held: dict[str, np.ndarray] = {}

    def extend(self, row: int, ids: Sequence[int], start: int, every_row: bool, placed: Placed | None = None) -> torch.Tensor:
        """Run new tokens `ids` of one cache row from position `start`; logits [1, len(ids) or 1, vocabulary]."""
        made = []
        for at in range(0, len(ids), PIECE):
            piece = np.asarray(ids[at:at + PIECE], np.int64)[None]
            count = piece.shape[1]
            where = np.arange(start + at, start + at + count)[None]
            turns = np.broadcast_to(where, (3, *where.shape)) if placed is None else _seen(placed.positions, at)[:, None]
            made.append(self._run(row, piece, where, turns, np.arange(0 if every_row else count - 1, count), placed, at))
        return torch.cat(made, 1) if every_row else made[-1]

    def advance(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """One token for each of the first rows: tokens int64 [B, 1], positions int64 [B, 1, 2 or 4] -> logits [B, 1, V].

        positions: each token's slot, and where images came before what it turns by, on all three axes or on each.
        """
        where = positions[:, :1].numpy()
        turns = (positions[:, 1:] if positions.shape[1] > 1 else positions).numpy().T[..., None]
        return self._run(0, tokens.numpy(), where, np.broadcast_to(turns, (3, *where.shape)), np.zeros(1, np.int64))

    def _run(self, row: int, ids: np.ndarray, where: np.ndarray, turns: np.ndarray, rows: np.ndarray,
             placed: Placed | None = None, at: int = 0) -> torch.Tensor:
        given: dict[str, np.ndarray] = {"input_ids": ids, "rows": rows}
        given |= {"where": where, "positions": turns} if "where" in self.inputs else {"positions": where}
        if self.features is not None:
            given |= {"features": self.features, "media": np.full_like(where, -1)}
            if placed is not None and placed.media is not None and placed.features is not None:
                given |= {"features": placed.features.numpy(), "media": _seen(placed.media, at)[None]}
        for name, array in given.items():
            self.held[name] = array = np.ascontiguousarray(array)
            self.bound.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, view in self.cache.views(row, len(ids), max(self.least, int(where.max()) + 1)):
            self.bound.bind_input(f"past.{name}", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
            self.bound.bind_output(f"present.{name}", "cpu", 0, view.dtype, view.shape, view.ctypes.data)
        logits = np.empty((len(ids), len(rows), self.width), np.float32)
        self.bound.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        self.session.run_with_iobinding(self.bound)
        return torch.from_numpy(logits)


def _seen(told: torch.Tensor, at: int) -> np.ndarray:
    return told[..., at:at + PIECE].numpy()


class Cache:
    """Every layer's tensors [rows, slots, ...], which grow by doubling up to the artefact's bound."""

    def __init__(self, shapes: dict[str, list[int]], rows: int, most: int) -> None:
        self.rows, self.most = rows, most
        self.whole = {name: np.zeros((rows, 0, *shape), np.float32) for name, shape in shapes.items()}
        self.slots, self.told = 0, (0, 0, 0)

    def views(self, row: int, rows: int, slots: int) -> list[tuple[str, np.ndarray]]:
        """What is to be bound now: nothing where it is what was bound before. One row is a view of its first slots, several
        are whole."""
        slots = min(self.most, slots + -slots % _STEP)
        if slots > self.slots:
            self._grow(min(self.most, max(slots, 2 * self.slots)))
        told = (row, rows, slots if rows == 1 else self.slots)
        if told == self.told:
            return []
        self.told = told
        return [(name, whole[row:row + rows, :told[2]]) for name, whole in self.whole.items()]

    def _grow(self, slots: int) -> None:
        for name, whole in self.whole.items():
            grown = np.zeros((self.rows, slots, *whole.shape[2:]), whole.dtype)
            grown[:, :self.slots] = whole
            self.whole[name] = grown
        self.slots, self.told = slots, (0, 0, 0)


def open(artifact: Artifact, region: Region, form: str, device: Device,
         ) -> Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]:
    """The region's function out of the artefact's model, the same for every form. A call writes the caches it is given."""
    ir = vendor("onnx_ir")
    model = ir.from_proto(vendor("onnx").load_from_string(artifact.read(ONNX)))
    built: Any = next(function for function in model.functions.values() if function.name == region.name)
    changed = written(region)
    caches = [at for at, (name, _, _) in enumerate(region.inputs) if name in changed]

    def run(inputs: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        made = call(built, inputs)
        for at, after in zip(caches, made[len(region.outputs):], strict=True):
            inputs[at].copy_(after)
        return made[:len(region.outputs)]

    return run
