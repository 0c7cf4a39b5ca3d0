"""An artefact opened: checked for this machine, and in memory the weights of what one rank runs of it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Set
from concurrent.futures import ThreadPoolExecutor

import torch

from glmc.artifact import Artifact
from glmc.errors import DamagedArtifact, IncompatibleArtifact, UsageError
from glmc.native.keep import QUANTS, Keep, coded, kept_of
from glmc.native.keeps import keeps_of
from glmc.program import MAIN, Program, read
from glmc.runtime.by_region import open_code
from glmc.runtime.device import open_device
from glmc.runtime.memory import cache_bytes
from glmc.runtime.ranks import Alone, Ranks
from glmc.runtime.share import Share, bytes_of
from glmc.runtime.verdict import Verdict

_WHOLE = ("native", "onnx")
"""Engines that run the text as one."""


class Opened:
    """`programs` by part, their `weights` and how those are `kept`, the `device`; `whole`, whether the engine runs the text as
    one, else `calls`, the code of its regions; `timings`, the seconds of each phase."""

    def __init__(self, artifact: Artifact, device: str | None = None, threads: int | None = None, ranks: Ranks | None = None,
                 parts: Set[str] | None = None) -> None:
        """ranks: those that share the text model's weights, None for one alone. parts: what this rank runs, None for all.

        Raises UsageError (device, threads, ranks), DamagedArtifact, IncompatibleArtifact, StorageError.
        """
        began = time.perf_counter()
        self.artifact, self.ranks, self.threads = artifact, ranks or Alone(), _threads(threads)
        manifest = artifact.manifest
        self.native, self.whole = manifest["engine"] == "native", manifest["engine"] in _WHOLE
        # The native engine has threads of its own: torch's, which wait by spinning, would take the cores from them.
        if self.native:
            torch.set_num_threads(1)
        elif threads is not None:
            torch.set_num_threads(threads)
        self.programs = read_programs(artifact)
        self.kept = _kept(artifact, self.programs)
        share = Share(artifact, self.programs, self.kept, self.ranks) if self.ranks.size > 1 else None
        if share is not None:
            self.programs, self.kept = {**self.programs, MAIN: share.program}, share.kept
        own = {part: program for part, program in self.programs.items() if parts is None or part in parts}
        # ONNX Runtime reads the text's weights by itself.
        loads = {part: program for part, program in own.items() if part != MAIN or manifest["engine"] != "onnx"}
        alone = share is None and len(loads) == len(self.programs)
        self.device = open_device(artifact, device, cache_bytes(own[MAIN], manifest) if MAIN in own else 0,
                                  None if alone else bytes_of(loads.values(), self.kept))
        if self.device.stale:
            warnings.warn(f"{Verdict(self.device.stale).text()}; this version of glmc has others of these names", stacklevel=4)
        opened = time.perf_counter()
        with ThreadPoolExecutor(1) as beside:
            code = beside.submit(open_code, artifact, own[MAIN], manifest["bounds"]["max_batch"], self.device) if (
                MAIN in own and not self.whole) else None
            staging = self.device.staging if share is None else None  # a share is cut on the host
            wanted = None if alone else {name for program in loads.values() for name in program.weights()}
            cut = share.cutting(self.device.torch) if share else None
            self.weights = artifact.load_weights(self.threads, staging and staging(), wanted, cut)
            self.calls = code and code.result()
        self.timings = {"open": opened - began, "weights_and_code": time.perf_counter() - opened}


def _threads(asked: int | None) -> int:
    """How many threads to use. Raises UsageError for more than there are cores: they would only wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if asked is not None and (isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked <= cores):
        raise UsageError("the number of threads is out of range", field="threads", expected=f"1 to {cores}, the cores here",
                         found=asked)
    return asked or cores


def _kept(artifact: Artifact, programs: dict[str, Program]) -> dict[str, Keep]:
    """How the weights are kept that are not as the regions' text has them, which must be how this version would keep them.

    Raises DamagedArtifact, IncompatibleArtifact.
    """
    data, native = artifact.json("program.json"), artifact.manifest["engine"] == "native"
    said, quant = kept_of(data) if native or "kept" in data else {}, artifact.manifest.get("quant")
    if quant not in (None, *QUANTS):
        raise DamagedArtifact("the manifest names an unknown quantisation", file=artifact.folder, field="quant", found=quant)
    wanted = keeps_of(programs, artifact.manifest["engine"], quant, coded(said))
    wrong = [name for name in said.keys() | wanted.keys() if said.get(name) != wanted.get(name)]
    if wrong:
        raise IncompatibleArtifact("a weight is not kept in the form in which this version of glmc reads it", field=min(wrong),
                                   file=artifact.folder, expected=wanted.get(min(wrong)), found=said.get(min(wrong)),
                                   hint="compile it again with this version")
    return said


def read_programs(artifact: Artifact) -> dict[str, Program]:
    """The parts that program.json describes, with their regions' texts, checked. Raises DamagedArtifact."""
    return read(artifact.json("program.json"), lambda name: artifact.read(f"regions/{name}.region").decode())
