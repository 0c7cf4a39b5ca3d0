"""The components of a GLM-Image pipeline beside its autoregressive model, every field that shapes a picture checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from glmc.checkpoint.recipe import Recipe, Take
from glmc.errors import ConfigError
from glmc.families import glm_image_dit
from glmc.families.counts import Counts
from glmc.families.fields import Dims, choice, flag, integer, number

FOLDERS = ("text_encoder.", "transformer.", "vae.")
"""How the parameters of the components' published modules begin, as do the tensors of their folders."""
BYTES = 259
"""Ids of the byte tokenizer's own: three special tokens and 256 bytes; further special tokens follow."""
PATCH = 16
"""Pixels of the side of a patch: a token of the autoregressive model, of twice that side, becomes 2 x 2 of them."""
_SPECIAL = ["<pad>", "</s>", "<unk>"]
_NEVER = ("invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "stochastic_sampling")


@dataclass(frozen=True)
class Schedule:
    """The published scheduler's fields. dynamic: the shift follows the picture's size by `base_shift`, `max_shift` and
    `base_tokens` as `kind` says; otherwise it is `shift`. terminal: where the last sigma is stretched to, 0 for nowhere."""

    train_steps: int
    shift: float
    dynamic: bool
    base_shift: float
    max_shift: float
    base_tokens: int
    terminal: float
    kind: str


@dataclass(frozen=True)
class Pictures:
    """Of the diffusion half: its transformer, the glyph encoder's blocks, `extra` special tokens of its tokenizer, and of the
    autoencoder the channels of a latent, the pixels that one is wide and high (`scale`), and mean and deviation by channel."""

    dit: Dims
    patch: int
    blocks: int
    width: int
    extra: int
    channels: int
    scale: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    schedule: Schedule
    attention: bool
    """Whether the autoencoder attends, once on each way."""


def read(components: Any) -> Pictures:
    """From the configurations by folder. Raises ConfigError naming the folder's file and the field."""
    if not isinstance(components, dict) or not all(isinstance(components.get(f), dict) for f in (
            "text_encoder", "transformer", "vae", "scheduler", "tokenizer")):
        raise ConfigError("a component of the pipeline has no configuration", file="model_index.json", field="components")
    encoder, transformer, vae = (components[name] for name in ("text_encoder", "transformer", "vae"))
    dit = _of("transformer/config.json", lambda: glm_image_dit.read(transformer))
    width, blocks, vocabulary = _of("text_encoder/config.json", lambda: _encoder(encoder))
    if width != integer(transformer, "text_embed_dim", default=1472):
        raise ConfigError("the transformer takes glyphs of another width", file="transformer/config.json",
                          field="text_embed_dim", expected=f"d_model = {width} of the text encoder",
                          found=transformer.get("text_embed_dim", 1472))
    extra = _of("tokenizer/tokenizer_config.json", lambda: _extra(components["tokenizer"], vocabulary))
    channels, scale, mean, deviation = _of("vae/config.json", lambda: _vae(vae))
    if channels != integer(transformer, "in_channels", default=16):
        raise ConfigError("the transformer takes latents of another width", file="transformer/config.json",
                          field="in_channels", expected=f"latent_channels = {channels} of the VAE",
                          found=transformer.get("in_channels", 16))
    patch = integer(transformer, "patch_size", default=2)
    if patch * scale != PATCH:
        raise ConfigError("a patch is of another size than half a token of the autoregressive model", file="vae/config.json",
                          field="block_out_channels", expected=f"{PATCH} pixels", found=f"{patch * scale} pixels")
    schedule = _of("scheduler/scheduler_config.json", lambda: _schedule(components["scheduler"]))
    return Pictures(dit, patch, blocks, width, extra, channels, scale, mean, deviation, schedule,
                    flag(vae, "mid_block_add_attention", True))


def promises(pictures: Pictures) -> dict[str, Counts]:
    """The transformer's, and the glyph encoder's RMS norms: two a block, and the last; each but the first follows an add."""
    made = {f"text_encoder.encoder.block.{i}": {"rms_norm": 2, "add_rms_norm": 2 if i else 1} for i in range(pictures.blocks)}
    return {**glm_image_dit.promises(pictures.dit), "text_encoder": {"rms_norm": 1, "add_rms_norm": 1}, **made,
            "vae": {"attention": 2 if pictures.attention else 0}}


def recipe(name: str) -> Recipe:
    """Of a component's parameter."""
    return Take(name.replace("encoder.embed_tokens", "shared") if name.startswith("text_encoder.") else name)


LEFTOVERS = (r"text_encoder\.encoder\.embed_tokens\.weight",)
"""The glyph encoder's table under its other name."""


def _of(file: str, read: Any) -> Any:
    """What `read` gives; a fault names the component's own file."""
    try:
        return read()
    except ConfigError as fault:
        fault.file = file
        raise


def _encoder(config: dict[str, Any]) -> tuple[int, int, int]:
    """Width, blocks and vocabulary of a T5 encoder."""
    choice(config, "model_type", ("t5",), "t5")
    for name in ("d_kv", "d_ff", "num_heads", "relative_attention_num_buckets", "relative_attention_max_distance"):
        integer(config, name, low=1, default={"relative_attention_num_buckets": 32,
                                              "relative_attention_max_distance": 128}.get(name))
    number(config, "layer_norm_epsilon", 0.0, 1.0, 1e-6)
    return (integer(config, "d_model"), integer(config, "num_layers", high=1024),
            integer(config, "vocab_size", low=BYTES))


def _extra(config: dict[str, Any], vocabulary: int) -> int:
    """How many `<extra_id_N>` follow the bytes in the tokenizer. Any other special token is refused."""
    choice(config, "tokenizer_class", ("ByT5Tokenizer",), "ByT5Tokenizer")
    for token, name in zip(_SPECIAL, ("pad_token", "eos_token", "unk_token"), strict=True):
        found = config.get(name, token)
        if (found.get("content") if isinstance(found, dict) else found) != token:
            raise ConfigError("the tokenizer has another special token", field=name, expected=token, found=found)
    listed = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    count = integer(config, "extra_ids", low=0, high=1000, default=125)
    names = listed if isinstance(listed, list) else [f"<extra_id_{i}>" for i in range(count)]
    table = config.get("added_tokens_decoder", {})
    wanted = {str(i): token for i, token in enumerate(_SPECIAL)} | {str(BYTES + i): token for i, token in enumerate(names)}
    stands = {i: entry.get("content") if isinstance(entry, dict) else entry for i, entry in table.items()}
    if names != [f"<extra_id_{i}>" for i in range(len(names))] or (table and stands != wanted):
        raise ConfigError("the tokenizer has special tokens that are not those of bytes and <extra_id_N>",
                          field="added_tokens_decoder", found=sorted(set(stands.items()) ^ set(wanted.items()))[:3])
    if BYTES + len(names) > vocabulary:
        raise ConfigError("the tokenizer has more ids than the text encoder", field="extra_ids",
                          expected=f"at most {vocabulary - BYTES}", found=len(names))
    return len(names)


def _vae(config: dict[str, Any]) -> tuple[int, int, tuple[float, ...], tuple[float, ...]]:
    """Channels, pixels a latent, mean and deviation by channel."""
    levels = config.get("block_out_channels")
    if not isinstance(levels, list) or not 1 <= len(levels) <= 8:
        raise ConfigError("the field is no list of one to eight widths", field="block_out_channels", found=levels)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if config.get(field) != [kind] * len(levels):
            raise ConfigError("the autoencoder has blocks that are not known here", field=field, expected=kind,
                              found=config.get(field))
    for field in ("in_channels", "out_channels"):
        if integer(config, field, default=3) != 3:
            raise ConfigError("pictures have three channels", field=field, expected=3, found=config[field])
    channels = integer(config, "latent_channels", high=4096, default=4)
    numbers = []
    for field in ("latents_mean", "latents_std"):
        values = config.get(field)
        if not isinstance(values, list) or len(values) != channels:
            raise ConfigError("the field has no number for each channel of a latent", field=field,
                              expected=f"{channels} numbers", found=values)
        low = 0.0 if field == "latents_std" else -1e6
        numbers.append(tuple(number({field: value}, field, low, 1e6) for value in values))
    return channels, 2 ** (len(levels) - 1), numbers[0], numbers[1]


def _schedule(config: dict[str, Any]) -> Schedule:
    choice(config, "_class_name", ("FlowMatchEulerDiscreteScheduler",), "FlowMatchEulerDiscreteScheduler")
    for field in _NEVER:
        if flag(config, field, False):
            raise ConfigError("this variant of the scheduler is not done here", field=field, expected=False, found=True)
    known = {"num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
             "max_image_seq_len", "shift_terminal", "time_shift_type", *_NEVER}
    unknown = sorted(name for name in config if not name.startswith("_") and name not in known)
    if unknown:
        raise ConfigError("the scheduler has a field that is not known here", field=unknown[0], found=config[unknown[0]])
    terminal = 0.0 if not config.get("shift_terminal") else number(config, "shift_terminal", 0.0, 0.999)
    return Schedule(
        integer(config, "num_train_timesteps", low=2, high=1 << 20, default=1000), number(config, "shift", 0.0, 1e3, 1.0),
        flag(config, "use_dynamic_shifting", False), number(config, "base_shift", -1e3, 1e3, 0.5),
        number(config, "max_shift", -1e3, 1e3, 1.15), integer(config, "base_image_seq_len", default=256), terminal,
        choice(config, "time_shift_type", ("exponential", "linear"), "exponential"))
