"""A checkpoint's image and video settings come from its files; class defaults are transformers'; the rest is refused."""

import json

import pytest
from media_cases import class_values, published

from glmc.errors import DamagedArtifact, IncompatibleArtifact
from glmc.runtime.media.settings import MEAN, STD, Settings

CONFIG = {"model_type": "glm4v", "vision_config": {"patch_size": 14}, "image_token_id": 3, "video_token_id": 4,
          "image_start_token_id": 5, "image_end_token_id": 6, "video_start_token_id": 7, "video_end_token_id": 8}
IMAGE = {"size": {"shortest_edge": 12544, "longest_edge": 9633792}, "do_rescale": True, "patch_size": 14,
         "temporal_patch_size": 2, "merge_size": 2, "image_mean": list(MEAN), "image_std": list(STD), "resample": 3,
         "image_processor_type": "Glm46VImageProcessor", "processor_class": "Glm46VProcessor"}
VIDEO = {**{k: v for k, v in IMAGE.items() if k != "image_processor_type"},
         "size": {"shortest_edge": 12544, "longest_edge": 100352000}, "video_processor_type": "Glm46VVideoProcessor"}


def opened(config=CONFIG, **files):
    """Settings from objects; preprocessor= stands for preprocessor_config.json and so on."""
    held = {"config.json": config, **{f"{name}_config.json": value for name, value in files.items()}}
    return Settings.open(lambda name: json.dumps(held[name]).encode() if name in held else None)


def test_no_images_are_taken():
    assert Settings.open(lambda name: None) is None
    assert opened({"model_type": "glm4_moe"}) is None
    assert opened({**CONFIG, "vision_config": None}) is None
    assert opened({**CONFIG, "model_type": "glm_image"}) is None


@pytest.mark.parametrize(("family", "sampler", "stamps", "longest"), [
    ("glm4v", "glm4v", "seconds", 47040000), ("glm4v_moe", "glm4v", "seconds", 47040000),
    ("glm46v", "glm46v", "tenths", 47040000), ("glm_ocr", "glm46v", "tenths", 47040000),
    ("glmga", "glmga", "tenths", 87478720)])
def test_without_files_the_family_decides(family, sampler, stamps, longest):
    made = opened({**CONFIG, "model_type": family})
    assert (made.sampler, made.stamps, made.video.longest, made.image.longest) == (sampler, stamps, longest, 11760000)
    assert (made.tokens.image, made.tokens.begin_video, made.tokens.end_video) == (3, 7, 8)


def test_files_decide_over_the_family():
    made = opened({**CONFIG, "model_type": "glm4v_moe"}, preprocessor=IMAGE, video_preprocessor=VIDEO)
    assert (made.sampler, made.stamps, made.image.longest, made.video.longest) == ("glm46v", "tenths", 9633792, 100352000)


def test_one_file_holds_both_in_newer_checkpoints():
    whole = {"image_processor": IMAGE, "video_processor": VIDEO, "processor_class": "Glm4vProcessor"}
    made = opened(preprocessor={"size": {"shortest_edge": 1, "longest_edge": 2}}, processor=whole)
    assert (made.stamps, made.image.longest, made.video.longest) == ("seconds", 9633792, 100352000)


def test_videos_without_a_file_are_sized_as_images():
    made = opened(preprocessor={**IMAGE, "image_processor_type": "Glm46VImageProcessorFast"})
    assert (made.sampler, made.video.longest) == ("glm46v", 9633792)


def test_expanding_is_the_newest_class_alone():
    ga = {**VIDEO, "video_processor_type": "GlmgaVideoProcessor", "patch_expand_factor": 2, "fps": 1, "max_frames": 64}
    made = opened(video_preprocessor=ga, preprocessor={**IMAGE, "patch_expand_factor": 2})
    assert (made.video.factor, made.image.factor, made.fps, made.max_frames) == (56, 28, 1.0, 64)


@pytest.mark.parametrize(("key", "value"), [
    ("patch_size", 0), ("patch_size", "14"), ("patch_size", 16), ("merge_size", 3), ("temporal_patch_size", True),
    ("size", [1, 2]), ("rescale_factor", 0), ("rescale_factor", "1/255"), ("image_mean", [0.5, 0.5]),
    ("image_std", [0.5, 0.0, 0.5]), ("image_mean", 0.5)])
def test_a_wrong_value_names_file_and_field(key, value):
    with pytest.raises(DamagedArtifact) as fault:
        opened(preprocessor={**IMAGE, key: value})
    assert (fault.value.file, fault.value.field) == ("preprocessor_config.json", key)


@pytest.mark.parametrize(("size", "field"), [
    ({"shortest_edge": 5}, "size.longest_edge"), ({"shortest_edge": 5, "longest_edge": 4}, "size.longest_edge"),
    ({"shortest_edge": 0, "longest_edge": 4}, "size.shortest_edge"), ({"longest_edge": 4}, "size.shortest_edge")])
def test_wrong_limits(size, field):
    with pytest.raises(DamagedArtifact) as fault:
        opened(processor={"video_processor": {**VIDEO, "size": size}})
    assert (fault.value.file, fault.value.field) == ("processor_config.json", f"video_processor.{field}")


@pytest.mark.parametrize("name", ["image_token_id", "video_token_id", "video_start_token_id", "image_end_token_id"])
def test_ids_are_never_assumed(name):
    with pytest.raises(DamagedArtifact) as fault:
        opened({k: v for k, v in CONFIG.items() if k != name})
    assert (fault.value.file, fault.value.field) == ("config.json", name)


@pytest.mark.parametrize(("key", "value"), [
    ("do_resize", False), ("do_rescale", False), ("do_normalize", False), ("do_convert_rgb", False), ("resample", 2),
    ("size", {"height": 224, "width": 224}), ("video_processor_type", "Qwen2VLVideoProcessor"),
    ("processor_class", "Glm5NextProcessor")])
def test_an_option_that_is_not_done_is_refused_by_name(key, value):
    with pytest.raises(IncompatibleArtifact) as fault:
        opened(video_preprocessor={**VIDEO, key: value})
    assert (fault.value.file, fault.value.field) == ("video_preprocessor_config.json", key)


def test_frames_that_no_one_chooses_are_refused():
    with pytest.raises(IncompatibleArtifact, match="do_sample_frames"):
        opened(video_preprocessor={**VIDEO, "do_sample_frames": False})


@pytest.mark.parametrize(("family", "kind", "name"), [
    (family, kind, f"{prefix}{kind.capitalize()}Processor") for family, prefix in (
        ("glm4v", "Glm4v"), ("glm46v", "Glm46V"), ("glmga", "Glmga")) for kind in ("image", "video")])
def test_the_defaults_are_transformers_own(family, kind, name):
    values = class_values(f"models/{family}/{kind}_processing_{family}", name)
    made = opened({**CONFIG, "model_type": family})
    sizing = getattr(made, kind)
    assert values["size"] == {"shortest_edge": sizing.shortest, "longest_edge": sizing.longest}
    assert (values["patch_size"], values["temporal_patch_size"], values["merge_size"]) == (
        sizing.patch, sizing.temporal, sizing.merge)
    assert values.get("patch_expand_factor", 1) == sizing.expand
    assert all(values[key] for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"))
    if kind == "video":
        assert (values["fps"], values["max_duration"], values.get("max_frames", 640)) == (
            made.fps, made.max_duration, made.max_frames)


def test_the_colours_are_transformers_own():
    text = published("image_utils").read_text() + published("utils/constants").read_text()
    assert f"OPENAI_CLIP_MEAN = {list(MEAN)}" in text
    assert f"OPENAI_CLIP_STD = {list(STD)}" in text
