"""A pipeline's folders as one checkpoint: every tensor under a name of its own, every class and field checked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import picturing
import pytest
import torch

from glmc import families
from glmc.checkpoint.components import open_checkpoint, read_config
from glmc.errors import CheckpointChanged, CheckpointError, ConfigError, GlmcError, UnknownFamily, WeightMissing

NORM = "text_encoder.encoder.block.0.layer.0.layer_norm.weight"


@pytest.fixture
def folder(tmp_path) -> Path:
    return Path(shutil.copytree(picturing.published()[0], tmp_path / "model"))


def rewrite(path: Path, change: Callable[[dict], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_tensors_of_all_folders_have_names_of_their_own(folder):
    opened, (_, pipeline) = open_checkpoint(folder), picturing.published()
    assert {"lm_head.weight", NORM, "transformer.proj_out.weight", "vae.decoder.conv_in.weight"} <= set(opened.tensors)
    assert torch.equal(opened.read(NORM), dict(pipeline.text_encoder.named_parameters())[NORM.partition(".")[2]])
    assert torch.equal(opened.read("vae.decoder.conv_in.weight"), pipeline.vae.decoder.conv_in.weight)
    assert opened.digest() == open_checkpoint(picturing.published()[0]).digest()
    assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= set(opened.extra_files())
    with pytest.raises(WeightMissing):
        opened.read("proj_out.weight")


@pytest.mark.parametrize("file", ["vae/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json",
                                  "model_index.json", "processor/tokenizer.json"])
def test_an_edit_of_any_folder_is_seen(folder, file):
    opened = open_checkpoint(folder)
    opened.check_unchanged()
    (folder / file).write_bytes((folder / file).read_bytes() + b" ")
    with pytest.raises(CheckpointChanged):
        opened.check_unchanged()


@pytest.mark.parametrize(("file", "change", "error", "field"), [
    ("model_index.json", lambda v: v.update(_class_name="FluxPipeline"), UnknownFamily, "_class_name"),
    ("model_index.json", lambda v: v.update(vae=["diffusers", "AutoencoderTiny"]), ConfigError, "vae"),
    ("model_index.json", lambda v: v.pop("tokenizer"), ConfigError, "tokenizer"),
    ("model_index.json", lambda v: v.update(upscaler=["diffusers", "X"]), ConfigError, "upscaler"),
    ("scheduler/scheduler_config.json", lambda v: v.update(use_karras_sigmas=True), ConfigError, "use_karras_sigmas"),
    ("scheduler/scheduler_config.json", lambda v: v.update(stochastic_sampling=True), ConfigError, "stochastic_sampling"),
    ("scheduler/scheduler_config.json", lambda v: v.update(solver="heun"), ConfigError, "solver"),
    ("scheduler/scheduler_config.json", lambda v: v.update(time_shift_type="cubic"), ConfigError, "time_shift_type"),
    ("vae/config.json", lambda v: v.update(latents_std=[1.0, 1.0, 0.0, 1.0]), ConfigError, "latents_std"),
    ("vae/config.json", lambda v: v.update(latents_mean=None), ConfigError, "latents_mean"),
    ("vae/config.json", lambda v: v.update(up_block_types=["AttnUpDecoderBlock2D"] * 4), ConfigError, "up_block_types"),
    ("vae/config.json", lambda v: v.update(
        block_out_channels=[4, 8], down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2),
     ConfigError, "block_out_channels"),
    ("transformer/config.json", lambda v: v.update(text_embed_dim=24), ConfigError, "text_embed_dim"),
    ("transformer/config.json", lambda v: v.update(in_channels=8, out_channels=8), ConfigError, "in_channels"),
    ("text_encoder/config.json", lambda v: v.update(vocab_size=300), ConfigError, "extra_ids"),
    ("text_encoder/config.json", lambda v: v.update(model_type="umt5"), ConfigError, "model_type"),
    ("tokenizer/tokenizer_config.json", lambda v: v.update(eos_token="<end>"), ConfigError, "eos_token"),
    ("tokenizer/tokenizer_config.json", lambda v: v.update(tokenizer_class="T5Tokenizer"), ConfigError, "tokenizer_class"),
    ("vision_language_encoder/config.json", lambda v: v["vq_config"].update(num_embeddings=32), ConfigError,
     "vq_config.num_embeddings"),
    ("vision_language_encoder/config.json", lambda v: v.update(quantization_config={"quant_method": "fp8"}), ConfigError,
     "quantization_config"),
], ids=range(20))
def test_what_is_not_known_is_refused_by_file_and_field(folder, file, change, error, field):
    rewrite(folder / file, change)

    def read() -> None:
        config = read_config(folder)
        families.load(config).read(config)

    with pytest.raises(error) as fault:
        read()
    assert fault.value.field == field
    assert str(fault.value.file).endswith(file) or field == "extra_ids"


@pytest.mark.parametrize("name", ["vae", "processor", "text_encoder", "scheduler", "vision_language_encoder"])
def test_a_folder_that_is_not_there_is_an_error(folder, name):
    shutil.rmtree(folder / name)
    with pytest.raises(GlmcError):
        open_checkpoint(folder)


def test_weights_of_two_folders_under_one_name_are_refused(folder):
    from safetensors.torch import load_file, save_file

    path = folder / "vision_language_encoder" / "model.safetensors"
    save_file({**load_file(path), NORM: torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="one name"):
        open_checkpoint(folder)
