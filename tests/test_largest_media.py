"""What a plan says of the largest image and video, and processor files that cannot be, refused before anything is traced."""

from __future__ import annotations

import json
import shutil

import models
import pytest

import glmc
from glmc import families
from glmc.errors import ConfigError
from glmc.families.towers import tower
from glmc.largest_media import largest_media, settings_of

FAMILY = "glm_ocr"


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(models.published(FAMILY)[2], tmp_path / "checkpoint")


def told(source, config, **options):
    settings = settings_of(source, config)
    return largest_media(settings, tower(config), config["text_config"]["hidden_size"], **options)


def test_the_processor_files_set_the_limits(checkpoint):
    config = models.tiny_config(FAMILY)
    found = told(checkpoint, config, item=4, patch_bytes=1000)
    # 6272 pixels of two equal frames are 16 tokens of 14 x 14.
    assert found["image"] == {"height": 56, "width": 56, "tokens": 16,
                              "bytes": 4 * 64 * 294 + 64 * 1000 + 4 * 16 * 40}
    assert found["video"]["frames"] % 2 == 0
    assert found["video"]["tokens"] < found["video"]["text_tokens"]


def test_without_files_the_published_classes_defaults_hold(checkpoint):
    config = models.tiny_config(FAMILY)
    alone = told(checkpoint / "config.json", config, item=2, patch_bytes=None)
    assert alone["image"]["tokens"] == 11_760_000 // (2 * 14 * 14)
    assert alone["image"]["bytes"] > told(checkpoint, config, item=2, patch_bytes=None)["image"]["bytes"]


@pytest.mark.parametrize(("file", "changes", "field"), [
    ("preprocessor_config.json", {"patch_size": 9}, "patch_size"),
    ("preprocessor_config.json", {"do_resize": False}, "do_resize"),
    ("video_preprocessor_config.json", {"size": {"shortest_edge": 9, "longest_edge": 3}}, "size.longest_edge"),
    ("video_preprocessor_config.json", {"video_processor_type": "OtherVideoProcessor"}, "video_processor_type"),
])
@pytest.mark.parametrize("verb", [glmc.plan, lambda source: glmc.compile(source, source.parent / "out.glmc")],
                         ids=["plan", "compile"])
def test_processor_files_that_cannot_be_are_refused_by_name(checkpoint, monkeypatch, verb, file, changes, field):
    path = checkpoint / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    monkeypatch.setattr("glmc.survey.parts_of", lambda *_: pytest.fail("the model was built before the files were read"))
    with pytest.raises(ConfigError) as fault:
        verb(checkpoint)
    assert (fault.value.file, fault.value.field, fault.value.exit) == (path, field, 3)


@pytest.mark.parametrize("family", [name for name in families.names() if name not in models.SEEING])
def test_families_without_a_tower_that_is_run_have_none(family, tmp_path):
    assert settings_of(tmp_path, families.load({"model_type": family} if family != "glm_image_dit" else {
        "_class_name": "GlmImageTransformer2DModel"}).TINY) is None
