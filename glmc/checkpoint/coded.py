"""Quantised weights kept as they are: which parameters can be, and their codes and scales as packing takes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from glmc.checkpoint.dequantise import Dequantise
from glmc.checkpoint.formats import Source
from glmc.checkpoint.recipe import Concatenate, Recipe, Stack
from glmc.native.panels import F8_GROUP

if TYPE_CHECKING:
    import torch

    from glmc.checkpoint.folder import Checkpoint


def forms_of(recipes: Mapping[str, Recipe]) -> tuple[dict[str, str], dict[str, str]]:
    """Of the parameters that have quantised parts: parameter -> form in which it can stay, and parameter -> why it cannot."""
    stays: dict[str, str] = {}
    opened: dict[str, str] = {}
    for name, recipe in recipes.items():
        leaves = recipe.leaves()
        coded = [leaf.source for leaf in leaves if isinstance(leaf, Dequantise)]
        if not coded:
            continue
        if len(coded) < len(leaves) or len({source.form for source in coded}) > 1:
            opened[name] = "it is joined from parts in several forms"
        elif not _rows_only(recipe):
            opened[name] = "it is cut or turned"
        elif any(s.form == "F8" and s.block[1] % F8_GROUP and s.block[1] < s.shape[1] for s in coded):
            opened[name] = f"a scale of it stands for other than a multiple of {F8_GROUP} inputs"
        else:
            stays[name] = coded[0].form
    return stays, opened


def _rows_only(recipe: Recipe) -> bool:
    """Whether the parameter is whole weights, their rows one after another, or a stack of such."""
    if isinstance(recipe, Stack):
        return not any(isinstance(part, Stack) for part in recipe.sources) and all(map(_rows_only, recipe.sources))
    if isinstance(recipe, Concatenate):
        return recipe.dim == 0 and all(map(_rows_only, recipe.sources))
    return isinstance(recipe, Dequantise)


def codes_of(recipe: Recipe, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes, scales, factors float32 [N]) of a parameter [N, K] that `forms_of` says can stay, for `panels.pack_codes`.

    Scales of F8 are float32 [N, ceil(K / 128)], whatever they stood for. Raises WeightNotFinite for a scale or a value that is
    not a finite number, as decoding does, and what reading raises.
    """
    import torch

    made = [_one(leaf.source, checkpoint) for leaf in recipe.leaves() if isinstance(leaf, Dequantise)]
    if len(made) == 1:
        return made[0]
    codes, scales, factors = zip(*made, strict=True)
    return torch.cat([c.view(torch.uint8) for c in codes]), torch.cat(scales), torch.cat(factors)


def _may_overflow(form: str, codes: torch.Tensor, scales: torch.Tensor, more: list[torch.Tensor]) -> bool:
    """Whether a value may be no finite number: from these scales on the largest code leaves float32, or a code is NaN."""
    import torch

    largest = torch.finfo(torch.float32).max
    if form == "MX4":
        return bool((scales.view(torch.uint8) >= 253).any())
    if form == "NV4":
        return float(more[0].abs()) > largest / (6 * 448)
    return bool((codes.view(torch.uint8) & 127 == 127).any()) or float(scales.float().abs().max()) > largest / 448


def _one(source: Source, checkpoint: Checkpoint) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    import torch

    codes, (scales, *more) = source.codes_and_scales(checkpoint)
    if _may_overflow(source.form, codes, scales, more):
        Dequantise(source).build(checkpoint)  # names the value that is not a finite number, if there is one
    rows, width = source.shape
    factors = more[0].reshape(1).expand(rows).float() if more else torch.ones(rows)
    if source.form != "F8":
        return codes, scales.view(torch.uint8), factors
    down, across = source.block
    groups = -(-width // F8_GROUP)
    each = groups if across >= width else across // F8_GROUP
    whole = scales.float().reshape(source.grid).repeat_interleave(down, 0)[:rows]
    return codes, whole.repeat_interleave(each, 1)[:, :groups].contiguous(), factors
