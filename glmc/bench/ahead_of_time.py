"""The same checkpoint compiled for `cpu:aoti` into a folder of this process, as a contender; compiling is part of its start."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from typing import Any

from glmc.bench.ours import Ours
from glmc.errors import PeerFailed

_FOLDERS: list[tempfile.TemporaryDirectory] = []
"""Held until the process ends: an artefact's libraries stay open."""


def ahead_of_time(told: dict[str, Any]) -> Ours:
    """Raises PeerFailed where it cannot be compiled."""
    folder = tempfile.TemporaryDirectory(prefix="glmc-bench-aoti-")
    _FOLDERS.append(folder)
    path, bounds = f"{folder.name}/model.glmc", told["bounds"]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "glmc", "compile", told["checkpoint"], "-o", path, "--target", "cpu:aoti",
                           "--dtype", told["dtype"], "--max-len", str(bounds["max_len"]),
                           "--max-batch", str(bounds["max_batch"])],
                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    compiled = time.perf_counter() - began
    if done.returncode:
        raise PeerFailed("the checkpoint cannot be compiled for cpu:aoti", field="aoti", expected="exit status 0",
                         found=f"{done.returncode}: {done.stderr[-300:].strip()}")
    opened = Ours(path, told["threads"], None)
    opened.phases = {**opened.phases, "compile": compiled}
    return opened
