"""A process of its own that loads an artefact and generates, and fails if that took a compiler."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

SCRIPT = """
import re
import sys
started = []
sys.addaudithook(lambda event, given: started.append(given[0]) if event in ("subprocess.Popen", "os.posix_spawn") else None)
import glmc, warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    glmc.load(sys.argv[1], device=sys.argv[2] or None).generate([5, 9, 7], max_new_tokens=int(sys.argv[3]))
unwanted = ("transformers", "torch._inductor", "torch._dynamo", "glmc.passes", "glmc.families", "glmc.trace")
compiler = r"(.*[-/])?(cc|gcc|[gc]\\+\\+|clang(\\+\\+)?|nvcc|ptxas|ld|as|sh|bash)(-[0-9.]+)?"
started = [name for name in map(str, started) if re.fullmatch(compiler, name)]
heavy = [m for m in sys.modules if m.startswith(unwanted)]
compiled = [str(w.message) for w in told if "compiled now" in str(w.message) or "rebuild" in str(w.message)]
assert not started and not heavy and not compiled, (started, heavy, compiled)
"""


def without_a_compiler(folder: Any, device: str = "", tokens: int = 1) -> str:
    """What such a process says on its error output where it fails; "" where it does not. It inherits the environment."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder), device, str(tokens)], capture_output=True, text=True,
                          check=False, timeout=300)
    return done.stderr if done.returncode else ""
