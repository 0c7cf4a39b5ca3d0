"""One JSON file of a checkpoint as an object."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from glmc.errors import DamagedArtifact


def json_object(read: Callable[[str], bytes | None], name: str) -> dict[str, Any]:
    """The object in the JSON file `name`, {} when there is no such file. Raises DamagedArtifact."""
    if (data := read(name)) is None:
        return {}
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as fault:
        raise DamagedArtifact("the file is not JSON", file=name, found=fault) from fault
    if not isinstance(value, dict):
        raise DamagedArtifact("the file is not a JSON object", file=name, found=type(value).__name__)
    return value
