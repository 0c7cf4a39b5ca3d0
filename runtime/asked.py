"""What may be asked of a model, and the prompt that it becomes: text, messages or token ids, with images and videos or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from glmc.errors import UsageError
from glmc.runtime import ask_media
from glmc.runtime.ask_media import Wishes
from glmc.runtime.media.layout import expand
from glmc.runtime.media.settings import Settings
from glmc.runtime.prompt import Prompt
from glmc.runtime.text import Text

Asked = str | Sequence[dict[str, Any]] | Sequence[int] | Prompt
"""Text, messages in transformers' format, token ids, or a prompt that is made."""


def prompt_of(asked: Asked, text: Text, settings: Settings | None, room: int, raw: bool = False, images: Sequence[Any] = (),
              videos: Sequence[Any] = (), wishes: Wishes | None = None) -> Prompt:
    """The prompt of what is asked. text: as one user message with the images and videos before it, or as it is with `raw`.

    settings: how the checkpoint takes images, None where it takes none. room: the most tokens of a prompt with images.
    images, videos: see `ask_media`. Raises UsageError, MediaError, RequestOutOfBounds.
    """
    media = bool(images or videos)
    if isinstance(asked, Prompt) or not (isinstance(asked, str) or _messages(asked)):
        if media:
            raise UsageError("token ids say where their images are, so none can be added", field="images",
                             expected="text or messages", found=type(asked).__name__)
        ids: Any = asked
        return asked if isinstance(asked, Prompt) else Prompt([int(i) if isinstance(i, torch.Tensor) else i for i in ids])
    as_it_is = asked if raw and isinstance(asked, str) else None
    if as_it_is is not None:
        wished = ask_media.Asked([], list(images), ask_media.pairs(videos))
    else:
        messages: Any = ask_media.spoken(asked, images, videos) if isinstance(asked, str) else list(asked)
        wished = ask_media.gathered(messages, images, videos)
    none = not wished.images and not wished.videos
    if settings is None and not none:
        raise UsageError("this model takes no images and no videos", field="images",
                         found=f"{len(wished.images)} images, {len(wished.videos)} videos")
    whole = text.rendered(wished.messages) if as_it_is is None else as_it_is
    if settings is not None and not none:
        return ask_media.prompt(settings, wished, whole, text, as_it_is is not None, room, wishes or Wishes())
    if settings is not None:
        expand(whole, (), ())  # refuses a placeholder that stands for nothing
    return Prompt(text.ids(whole) if as_it_is is None else text.encode(whole))


def _messages(asked: Any) -> bool:
    return len(asked) > 0 and isinstance(asked[0], Mapping)
