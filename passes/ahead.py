"""Build every Triton kernel that a model's programs will start, for a GPU that need not be here.

Each region runs once on meta tensors for every form and a ladder of sizes, with launches noted instead of made: the host
code of the kernels itself says what it will ask for. So does the choice of tokens from the logits of the text.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.fx.experimental import _config

from glmc import knobs
from glmc.kernels import load, triton
from glmc.native.keep import Keep
from glmc.passes.lower import Bounds, sample
from glmc.program import FORMS, KERNELS, MAIN, Program
from glmc.region import Bound

PICTURING = ("glyph", "dit", "vae_decode", "vae_encode", "vq")
"""Parts whose sizes are those of pictures."""
SIDE, MOST_TEXT = 128, 256
"""Patches of the side of a large picture; bytes of a long text in it."""
CHOICES: tuple[dict[str, Any], ...] = ({}, *({"temperature": 0.5, "top_k": k, "top_p": p} for k in (0, 1) for p in (0.5, 1.0)))
"""What may be asked of the choice of a token, as far as it is other kernels; numbers are theirs to read."""


def ladder(most: int) -> list[int]:
    """2, 4, 8 ... and the bound itself: launches differ by what is a power of two or has grown past a threshold."""
    return sorted({min(1 << n, most) for n in range(1, most.bit_length() + 1)} | {most})


def sizes(form: str, bounds: Bounds) -> Iterator[dict[str, int]]:
    """Rows, new tokens and slots at which a form is tried."""
    fixed = FORMS[form]
    for step in ladder(bounds.max_len if "S" not in fixed else bounds.max_batch if "B" not in fixed else 2):
        yield {"B": step, "S": step, "L": max(bounds.least, step if "S" not in fixed else bounds.slots), "M": 2} | fixed


def tried(part: str, bounds: Bounds) -> list[dict[str, int]]:
    """The sizes at which the regions of a part are tried: of a tower its blocks of patches, and the images that they are of; of
    parts that make pictures patches or latents high and wide, texts, tokens, and keys with those of an image before."""
    if part == MAIN:
        return [made for form in bounds.forms() for made in sizes(form, bounds)]
    if part in PICTURING:
        return [{"B": 1, "T": text, "H": side, "W": side, "K": text + side**2 * images}
                for side in ladder(SIDE) for text in (2, MOST_TEXT) for images in (1, 2)]
    return [{"M": blocks, "P": blocks, "F": images} for blocks in ladder(bounds.max_len) for images in (1, 2)]


def choose(program: Program, bounds: Bounds) -> None:
    """Choose tokens from logits of the text, in every way and for every number of rows; on meta tensors."""
    step = next(s for s in program.steps if program.logits in s.outputs)
    logits = program.regions[step.region].outputs[step.outputs.index(program.logits)]
    for rows in {1, *ladder(bounds.max_batch)}:
        given = torch.empty((rows, int(logits.shape[-1])), dtype=getattr(torch, logits.dtype))
        for seen in (None, torch.empty(given.shape, dtype=torch.bool)):
            for asked in CHOICES:
                load("sample", "triton").run(given, seen, torch.empty(rows, dtype=torch.float64) if asked else None, **asked)


@torch.no_grad()
def launches(programs: Mapping[str, Program], keeps: Mapping[str, Keep], bounds: Bounds) -> list[triton.Launch]:
    """Every distinct launch within the bounds, of the regions' kernels and of those that choose tokens, in the order of their
    names. A region is tried with each set of forms in which steps bring its weights."""
    # A mask's values are not there.
    all_true = _config.patch(meta_nonzero_assume_all_nonzero=True)  # type: ignore[attr-defined]
    with triton.noted() as notes, torch.device("meta"), all_true:
        for part, name, kept in dict.fromkeys(
                (part, s.region, tuple(keeps.get(n.removeprefix("weight:")) for n in s.inputs))
                for part, program in programs.items() for s in program.steps if not s.moves):
            region = programs[part].regions[name]
            bound = Bound(region, "triton", "meta")
            for made in tried(part, bounds):
                bound(*(keep.bound(torch.empty(keep.stored()[1], dtype=torch.uint8)) if keep else
                        sample(spec, role, made, bounds)
                        for keep, (_, role, spec) in zip(kept, region.inputs, strict=True)))
        if MAIN in programs:
            choose(programs[MAIN], bounds)
    return sorted(notes, key=lambda asked: (asked.name, asked.digest))


def build_all(programs: Mapping[str, Program], keeps: Mapping[str, Keep], bounds: Bounds, gpu: triton.Gpu, folder: Path,
              done: Callable[[int, int], None]) -> Iterator[Path]:
    """Build into `folder`; yields the files made: a binary and Triton's description of each launch, and the index of all.

    keeps: the weights that are kept otherwise than the regions' text has them. done(n, of) is called when n kernels are built.
    """
    wanted, entries = launches(programs, keeps, bounds), []
    for number, asked in enumerate(wanted, 1):
        *made, used = _built(asked, gpu, folder)
        yield from made
        entries.append({**asked.facts(), "digest": asked.digest, "name": made[0].stem, **used})
        done(number, len(wanted))
    yield _written(folder / Path(KERNELS).name, _json({
        "gpu": list(gpu), "binary": _ending(gpu), "triton": triton.VERSION, "cuda": triton.assembler(gpu), "kernels": entries}))


class Built:
    """Kernels as an artefact would hold them, for a GPU that is here: built ahead of a call, and started as they are."""

    def __init__(self, gpu: triton.Gpu) -> None:
        self._gpu, self._folder = gpu, tempfile.TemporaryDirectory(prefix="glmc-kernels-")
        self._files: dict[str, tuple[Path, Path]] = {}
        self._opened: triton.Opened = {}

    @torch.no_grad()
    def ahead(self, call: Callable[[], Any]) -> None:
        """Build what `call`, whose tensors are on the meta device, would start and is not built yet."""
        with triton.noted() as notes, torch.device("meta"):
            call()
        for asked in notes:
            if asked.digest not in self._files:
                self._files[asked.digest] = _built(asked, self._gpu, Path(self._folder.name))[:2]

    def starting(self) -> AbstractContextManager:
        """Meanwhile launches start what was built; what was not, Triton compiles as it comes."""
        return triton.sealed(lambda digest, name: self._files.get(digest), self._opened)


def _built(asked: triton.Launch, gpu: triton.Gpu, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """A launch built into `folder`, or copied there from GLMC_CACHE: Triton's description, the binary, and what it uses."""
    cache, name = knobs.get("GLMC_CACHE"), f"{asked.name}-{asked.digest}"
    made = [folder / f"{name}.json", folder / f"{name}.{_ending(gpu)}"]
    key = "-".join(map(str, (name, *gpu, triton.VERSION, triton.assembler(gpu))))
    kept = Path(cache) / key if cache else None
    if kept is None or not kept.is_dir():
        with tempfile.TemporaryDirectory(prefix="triton-", dir=folder) as scratch:
            binary, described, used = triton.build(asked, gpu, Path(scratch))
        for path, data in zip(made, (_json(described), binary), strict=True):
            _written(path, data)
        if kept is not None:
            _keep(kept, [*made, _written(folder / "used", _json(used))])
        return made[0], made[1], used
    for path in made:
        shutil.copyfile(kept / path.name, path)
    return made[0], made[1], json.loads((kept / "used").read_text())


def _keep(kept: Path, files: list[Path]) -> None:
    """Put files into the cache as the folder `kept`: whole, or not at all where another process was quicker."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    passing = Path(tempfile.mkdtemp(prefix=".passing-", dir=kept.parent))
    for path in files:
        shutil.copyfile(path, passing / path.name)
    try:
        passing.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise
        shutil.rmtree(passing)


def _ending(gpu: triton.Gpu) -> str:
    return "cubin" if gpu[0] == "cuda" else "hsaco"


def _written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def _json(value: Any) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
