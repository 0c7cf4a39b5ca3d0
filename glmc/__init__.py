"""glmc compiles a GLM checkpoint into one sealed artefact and runs it.

plan(source)            what the compiler will do, from the configuration alone
compile(source, out)    the whole road
load(out)               a model that generates
torch.compile(module, backend="glmc")    the same passes under dynamo
ledger_of(compiled)     what those passes found for it

Importing glmc imports no torch; the first call does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glmc.backend import ledger_of
    from glmc.build import compile
    from glmc.planner import plan
    from glmc.runtime.session import load

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "ledger_of", "load", "plan"]

_HOMES = {"plan": "glmc.planner", "compile": "glmc.build", "load": "glmc.runtime.session",
          "ledger_of": "glmc.backend"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'glmc' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
