"""From what is asked, with images and videos, to a prompt: the published processor's ids and pixels; refusals before work."""

from __future__ import annotations

import base64
import io

import models
import numpy as np
import pytest
import seeing
import torch
from PIL import Image

from glmc.errors import GlmcError, MediaError, RequestOutOfBounds, UsageError
from glmc.runtime.ask_media import Wishes
from glmc.runtime.asked import prompt_of
from glmc.runtime.media.settings import Settings
from glmc.runtime.prompt import Prompt
from glmc.runtime.text import Text

ROOM = 200
OF_CLASS = {"glm4v": "glm4v", "glm4v_moe": "glm4v", "glm46v": "glm46v", "glm_ocr": "glm46v", "glmga": "glmga"}


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def clip(frames, height, width, seed=1):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(params=models.SEEING)
def family(request):
    return request.param


@pytest.fixture
def folder(family):
    return models.published(family)[2]


def opened(folder):
    def read(name):
        return (folder / name).read_bytes() if (folder / name).exists() else None

    return Text.open(read), Settings.open(read)


@pytest.fixture
def ask(folder):
    text, settings = opened(folder)
    return lambda asked, room=ROOM, **options: prompt_of(asked, text, settings, room, **options)


def processor(family, folder, monkeypatch):
    """transformers' own processor with its Pillow side; its video side needs a package that is not there."""
    import importlib

    from transformers import PreTrainedTokenizerFast
    from transformers.processing_utils import ProcessorMixin

    monkeypatch.setattr(ProcessorMixin, "check_argument_for_proper_class", lambda *_: None)
    kind = OF_CLASS[family]
    whole = "glm4v" if kind == "glm4v" else "glm46v"
    name = {"glm4v": "Glm4v", "glm46v": "Glm46V", "glmga": "Glmga"}
    images = getattr(importlib.import_module(f"transformers.models.{kind}.image_processing_pil_{kind}"),
                     f"{name[kind]}ImageProcessorPil")
    made = getattr(importlib.import_module(f"transformers.models.{whole}.processing_{whole}"), f"{name[whole]}Processor")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    return made(image_processor=images.from_pretrained(str(folder)), tokenizer=tokenizer, chat_template=models.TEMPLATE)


def test_images_are_what_the_published_processor_makes_of_them(family, folder, ask, monkeypatch):
    pictures = [Image.fromarray(picture(40, 60)), Image.fromarray(picture(90, 31, 2)), Image.fromarray(picture(14, 200, 3))]
    content = [{"type": "text", "text": "one"}, {"type": "image", "image": pictures[0]}, {"type": "text", "text": "two"},
               {"type": "image", "image": pictures[1]}, {"type": "image", "image": pictures[2]}, {"type": "text", "text": "?"}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "no"},
                {"role": "user", "content": "why"}]
    theirs = processor(family, folder, monkeypatch).apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True)
    ours = ask(messages)
    assert list(ours.ids) == theirs["input_ids"][0].tolist()
    assert torch.equal(ours.seen.pixels, theirs["pixel_values"])
    assert torch.equal(ours.seen.grid, theirs["image_grid_thw"])
    model = models.published(family)[1].model
    positions, delta = model.get_rope_index(theirs["input_ids"], theirs["mm_token_type_ids"], theirs["image_grid_thw"])
    assert torch.equal(ours.seen.positions, positions[:, 0])
    assert ours.delta == int(delta)
    assert torch.equal(ours.seen.media >= 0, theirs["mm_token_type_ids"][0] == 1)


def test_a_file_bytes_base64_and_an_array_are_the_same(ask, tmp_path):
    pixels = picture(30, 44)
    (tmp_path / "a.png").write_bytes(png(pixels))
    sources = [{"image": str(tmp_path / "a.png")}, {"path": tmp_path / "a.png"}, {"url": str(tmp_path / "a.png")},
               {"base64": base64.b64encode(png(pixels)).decode()}, {"image": png(pixels)}, {"image": Image.fromarray(pixels)},
               {"image": pixels}, {"image": torch.from_numpy(pixels)}]
    made = [ask([{"role": "user", "content": [{"type": "image", **source}]}]) for source in sources]
    beside = ask([{"role": "user", "content": [{"type": "image"}]}], images=[pixels])
    assert all(one.ids == made[0].ids and torch.equal(one.seen.pixels, made[0].seen.pixels) for one in [*made, beside])


def test_images_and_videos_stand_where_the_messages_have_them(ask):
    """transformers refuses a prompt of both, since it counts their tokens as of one kind."""
    film = (clip(8, 28, 42), {"total_num_frames": 8, "fps": 4.0})
    first = [{"type": "video"}, {"type": "text", "text": "then"}, {"type": "image"}]
    for content in (first, first[::-1]):
        made = ask([{"role": "user", "content": content}], images=[picture(28, 56)], videos=[film])
        alone = {"image": ask("x", images=[picture(28, 56)]).seen, "video": ask("x", videos=[film]).seen}
        order = [alone[item["type"]] for item in content if item["type"] != "text"]
        assert torch.equal(made.seen.pixels, torch.cat([seen.pixels for seen in order]))
        assert torch.equal(made.seen.grid, torch.cat([seen.grid for seen in order]))
        places = made.seen.media[made.seen.media >= 0]
        assert torch.equal(places, torch.arange(int(made.seen.grid.prod(1).sum()) // 4))
        assert made.delta < 0


def test_text_comes_after_what_is_given_beside_it(ask):
    made = ask("what?", images=[picture(28, 28)])
    content = [{"type": "image", "image": picture(28, 28)}, {"type": "text", "text": "what?"}]
    spelled = ask([{"role": "user", "content": content}])
    assert made.ids == spelled.ids


def test_a_raw_prompt_has_its_own_placeholders(ask):
    made = ask("see <|begin_of_image|><|image|><|end_of_image|>!", raw=True, images=[picture(28, 28)])
    assert list(made.ids).count(seeing.IMAGE) == len(made.seen.pixels) // 4
    with pytest.raises(UsageError, match="placeholder"):
        ask("see!", raw=True, images=[picture(28, 28)])


def test_a_long_video_is_refused_or_thinned(ask):
    film = (clip(120, 28, 28), {"total_num_frames": 120, "fps": 20.0})
    with pytest.raises(RequestOutOfBounds, match="too long") as fault:
        ask("?", room=60, videos=[film, film])
    assert "2 videos" in fault.value.found
    made = ask("?", room=120, videos=[film], wishes=Wishes(video_max_tokens=25))
    assert len(made.ids) <= 120
    assert any("frames are kept" in note for note in made.notes)
    whole = ask("?", room=5000, videos=[film])
    assert len(whole.ids) > len(made.ids)
    with pytest.raises(RequestOutOfBounds, match="does not fit"):
        ask("?", room=5000, videos=[film], wishes=Wishes(video_max_tokens=2))


def test_refusal_comes_before_the_pixels(ask, tmp_path):
    broken = png(picture(300, 200))[:200]
    with pytest.raises(RequestOutOfBounds, match="too long"):
        ask("?", room=10, images=[broken])
    with pytest.raises(MediaError, match="broken"):
        ask("?", images=[broken])


def test_text_without_media_is_as_it_was(family, ask):
    text, _ = opened(models.published(family)[2])
    assert ask("hello") == Prompt(text.chat([{"role": "user", "content": "hello"}]))
    assert ask("hello", raw=True) == Prompt(text.encode("hello"))
    assert ask([5, 6, 7]) == Prompt([5, 6, 7])
    assert ask(made := Prompt([5])) is made


WRONG = {
    "ids and an image": ([5, 6], {"images": [picture(28, 28)]}),
    "a placeholder in the text": ("<|image|>", {"images": [picture(28, 28)]}),
    "a placeholder without an image": ("what is <|image|>?", {}),
    "the same in a raw prompt": ("what is <|video|>?", {"raw": True}),
    "an item without an image": ([{"role": "user", "content": [{"type": "image"}]}], {}),
    "an image that nothing speaks of": ([{"role": "user", "content": "hi"}], {"images": [picture(28, 28)]}),
    "an address": ([{"role": "user", "content": [{"type": "image", "url": "https://example.org/a.png"}]}], {}),
    "no base64": ([{"role": "user", "content": [{"type": "image", "base64": "%%%"}]}], {}),
    "no image": ("x", {"images": [7]}),
    "an image as a video": ("x", {"videos": [png(picture(28, 28))]}),
    "a video's metadata that are wrong": ("x", {"videos": [(clip(4, 28, 28), {"total_num_frames": "4"})]}),
    "metadata of another video": ("x", {"videos": [(clip(4, 28, 28), {"total_num_frames": 9, "do_sample_frames": True})]}),
    "too long a shape": ("x", {"images": [picture(1, 4000)], "room": 100_000}),
}


@pytest.mark.parametrize(("asked", "options"), WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("family", ["glm46v"], indirect=True)
def test_what_cannot_be_is_refused_by_name(family, ask, asked, options):
    with pytest.raises(GlmcError) as fault:
        ask(asked, **options)
    assert fault.value.exit == 2
    assert fault.value.what


def test_a_model_of_text_takes_no_images():
    text, settings = opened(models.published("glm4")[2])
    assert settings is None
    with pytest.raises(UsageError, match="takes no images"):
        prompt_of("<|image|>", text, settings, ROOM, raw=True, images=[picture(28, 28)])
