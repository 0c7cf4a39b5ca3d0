"""The largest image and video that a checkpoint's limits allow, in tokens and in memory: what `glmc plan` says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from glmc.checkpoint.folder import MAX_EXTRA_BYTES
from glmc.checkpoint.regular_file import read_range, regular_file
from glmc.errors import CheckpointError, ConfigError, DamagedArtifact, IncompatibleArtifact
from glmc.families.towers import Tower
from glmc.native.tower import STEP
from glmc.runtime.media.budget import largest_image, largest_text, largest_video
from glmc.runtime.media.resize import image_grid
from glmc.runtime.media.sampling import most_frames
from glmc.runtime.media.settings import Settings

HOUR = 3600.0


def settings_of(source: Any, config: dict[str, Any]) -> Settings | None:
    """How a checkpoint takes images: from the processor files beside its config.json, or the published classes' defaults.

    None where it takes none. Raises ConfigError naming the file and the field that cannot be, or is not done here.
    """
    folder = Path(source)

    def read(name: str) -> bytes | None:
        if name == "config.json":
            return json.dumps(config).encode()
        if not folder.is_dir() or not (folder / name).exists():
            return None
        with regular_file(folder / name, error=CheckpointError) as (descriptor, state):
            size = min(state.st_size, MAX_EXTRA_BYTES)
            return read_range(descriptor, size, 0, file=folder / name, error=CheckpointError)

    try:
        return Settings.open(read)
    except (DamagedArtifact, IncompatibleArtifact) as fault:
        raise ConfigError(fault.what, file=folder / str(fault.file), field=fault.field, expected=fault.expected,
                          found=fault.found) from fault


def largest_media(settings: Settings, tower: Tower, hidden: int, item: int, patch_bytes: int | None) -> dict[str, Any]:
    """`image`: height and width in pixels, tokens, bytes; `video`: frames, vision tokens, text_tokens (with its marks and the
    times of an hour, at most), bytes.

    bytes: pixels, the tower's activations and its results while it runs. hidden: of the text model. patch_bytes: what the
    native library needs for each of the few patches that it runs at once; without it all run at once in elements of `item`
    bytes, of which the widest step of a block is counted.
    """
    def memory(patches: int, at_once: int) -> int:
        widest = item * max(5 * tower.hidden, tower.hidden + 3 * tower.intermediate)
        return 4 * patches * tower.pixels + at_once * (patch_bytes or widest) + 4 * patches // tower.merge**2 * hidden

    merge = settings.image.merge
    height, width = largest_image(settings.image)
    tokens = image_grid(height, width, settings.image).tokens(merge)
    vision, frames = largest_video(settings.video, most_frames(settings))
    patches = vision * settings.video.merge**2
    each = patches // -(-frames // settings.video.temporal)
    pictured = tokens * merge**2
    return {"image": {"height": height, "width": width, "tokens": tokens, "bytes": memory(pictured, pictured)},
            "video": {"frames": frames, "tokens": vision, "text_tokens": largest_text(settings, HOUR),
                      "bytes": memory(patches, patches if patch_bytes is None else min(patches, max(each, STEP)))}}
