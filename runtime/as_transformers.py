"""A loaded artefact behind transformers' `generate()`: scripts written for a transformers model keep working.

    model = glmc.load("glm.glmc").as_transformers()
    model.generate(**tokenizer(["one", "another prompt"], padding=True, return_tensors="pt"), max_new_tokens=32)

Left or right padding is read from `attention_mask` and taken out: each row's tokens go to the row's own cache slots, so a
row gives what it would give alone. Beam search, which reorders rows of the cache, is refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from glmc.errors import RequestOutOfBounds, UsageError

if TYPE_CHECKING:
    from glmc.runtime.session import Model


_PIXELS = ("pixel_values", "pixel_values_videos", "image_grid_thw", "video_grid_thw")


class Rows(Cache):
    """What stands for the KV cache in `generate()`: how many tokens each row of the artefact's own cache holds.

    `seen` counts columns of input_ids, padding included, as transformers counts them.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.lengths: list[int] = []
        self.holder = 0
        self.seen = 0

    def get_seq_length(self, *_: Any, **__: Any) -> int:
        return self.seen

    def reorder_cache(self, *_: Any, **__: Any) -> None:
        raise UsageError("beam search reorders the cache, which an artefact's cache does not do",
                         field="num_beams", expected="1")


class GlmcForCausalLM(PreTrainedModel, GenerationMixin):
    """`forward` and `generate` as transformers' causal models have them; weights and cache are the artefact's."""

    _supports_cache_class = True
    main_input_name = "input_ids"

    def __init__(self, model: Model, config: Any) -> None:
        super().__init__(config)
        self.inner = model
        self.marker = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # tells transformers device and dtype

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None,
                past_key_values: Rows | None = None, **others: Any) -> CausalLMOutputWithPast:
        """input_ids [B, S] and, from the first column on, attention_mask [B, all columns] -> float32 logits [B, S, V].

        Logits of padding columns are zero. Raises RequestOutOfBounds, UsageError.
        """
        if seen := [name for name in _PIXELS if others.get(name) is not None]:
            raise UsageError("images and videos do not go through transformers' generate()", field=seen[0],
                             hint="give them to the model itself: glmc.load(...).generate(..., images=[...])")
        self.inner.check_rows(len(input_ids))
        rows = past_key_values if isinstance(past_key_values, Rows) else Rows()
        known = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, rows.seen:]
        if known.shape != input_ids.shape:
            raise UsageError("attention_mask does not cover the tokens", field="attention_mask",
                             expected=[len(input_ids), rows.seen + input_ids.shape[1]], found=list(known.shape))
        logits = self._first(input_ids, known, rows) if not rows.lengths else self._next(input_ids, known, rows)
        rows.seen += input_ids.shape[1]
        return CausalLMOutputWithPast(logits=logits, past_key_values=rows)

    def _first(self, input_ids: torch.Tensor, known: torch.Tensor, rows: Rows) -> torch.Tensor:
        logits = torch.zeros(*input_ids.shape, self.inner.dims["vocabulary"])
        rows.holder = self.inner.take_cache()
        for row, (ids, mask) in enumerate(zip(input_ids, known.bool(), strict=True)):
            kept = ids[mask].tolist()
            self.inner.check_ids(kept, row)
        for row, (ids, mask) in enumerate(zip(input_ids, known.bool(), strict=True)):
            kept = ids[mask].tolist()
            logits[row, mask] = self.inner.extend(row, kept, 0, every_row=True)[0].float().cpu()
            # generate() samples from the last column, which right padding leaves empty.
            logits[row, -1] = logits[row, mask][-1]
            rows.lengths.append(len(kept))
        return logits

    def _next(self, input_ids: torch.Tensor, known: torch.Tensor, rows: Rows) -> torch.Tensor:
        if input_ids.shape[1] != 1 or not bool(known.all()):
            raise UsageError("after the prompt, one token a row at a time", field="input_ids",
                             expected="[B, 1]", found=list(input_ids.shape))
        if max(rows.lengths) >= self.inner.max_len:
            raise RequestOutOfBounds("a row is longer than the artefact's bound", field="max_new_tokens",
                                     expected=f"at most max_len = {self.inner.max_len} tokens a row")
        self.inner.check_cache(rows.holder)
        for row, token in enumerate(input_ids[:, 0].tolist()):
            self.inner.check_ids([token], row)
        logits = self.inner.advance(input_ids, torch.tensor(rows.lengths).unsqueeze(1))
        rows.lengths = [n + 1 for n in rows.lengths]
        return logits.float().cpu()

    def prepare_inputs_for_generation(  # type: ignore[override]
            self, input_ids: torch.Tensor, past_key_values: Any = None,
            attention_mask: torch.Tensor | None = None, **_: Any) -> dict[str, Any]:
        rows = past_key_values if isinstance(past_key_values, Rows) else Rows()
        return {"input_ids": input_ids[:, rows.seen:], "attention_mask": attention_mask, "past_key_values": rows}

    def _prepare_cache_for_generation(self, *_: Any, **__: Any) -> None:  # type: ignore[override]
        """transformers would make a cache of its own; the artefact has one."""


def wrap(model: Model) -> GlmcForCausalLM:
    """`model` as a transformers model, with the checkpoint's configuration and generation settings."""
    config = AutoConfig.for_model(**model.artifact.json("config.json"))
    wrapped = GlmcForCausalLM(model, config).eval()
    if "generation_config.json" in model.artifact.files:
        wrapped.generation_config = GenerationConfig.from_dict(model.artifact.json("generation_config.json"))
    return wrapped
