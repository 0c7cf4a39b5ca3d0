"""What an artefact runs: regions as readable text, and the flat list of steps that call them. No torch.

A region is written as a Python function of tensors whose every line is one step, so that it reads, diffs and parses:

    def layer_1f0c2a9b(
        x0: "value bfloat16 [B, S, 64]",
        input_layernorm_weight: "weight bfloat16 [64]",
        keys: "cache bfloat16 [B, L, 2, 16]",
    ) -> "bfloat16 [B, S, 64]":
        rms_norm = glmc.rms_norm(x0, input_layernorm_weight, eps=1e-05)
        ...
        return (add_1,)

B is rows, S new tokens a row, L filled cache slots. A form fixes some of them, and each region is compiled once a form. In a
part that ranks share, sizes that depend on their number N are written `96//N`; `at` makes them numbers.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from glmc.errors import DamagedArtifact, IncompatibleArtifact
from glmc.spec import Spec

PLACES_VERSION = 1
KERNELS = "kernels/index.json"
"""The file of an artefact that lists the kernels built ahead."""
ONNX = "model.onnx"
"""The file of an artefact for target `onnx` that ONNX Runtime opens."""
MAIN = "text"
"""The part of a model that generates: what program.json describes, with the other parts as its `stages`."""
ROLES = ("value", "weight", "cache")
MODES = ("replicated", "main_rank_only", "main_rank_then_broadcast", "cfg_parallel", "sequence_parallel", "tensor_parallel")
"""How a part of a program runs over ranks."""
PICTURE_MODES = {**dict.fromkeys(("text", "vision", "vq"), "main_rank_then_broadcast"), "glyph": "replicated",
                 "vae_encode": "replicated", "dit": "sequence_parallel", "vae_decode": "main_rank_only"}
"""Parts of what makes pictures -> how they run over ranks."""
FX = "fx"
"""The engine of a part that the artefact's own does not run."""
MOVES = {"all_reduce": (), "all_gather": ("dim", "after"), "past": ("layer",)}
"""Steps between regions that are no region -> what `fixed` may hold.

all_reduce: x -> the sum of all ranks' x. all_gather: x -> all ranks' x one after another along `dim`, but for the first
entries, as many as the letter `after` counts, which all ranks hold alike. past: a layer's keys and values -> those of images
before it and them, as the runtime's mode has it.
"""
WRITES = {"aten.index_put_.default": (0,), "glmc.split_qkv_norm_rope": (7, 8)}
"""Steps that write into arguments at these places, which are caches where they are there."""
# Forms by name: the letters they fix. Letters left out stay dynamic, at least 2.
FORMS: dict[str, dict[str, int]] = {"decode": {"B": 1, "S": 1}, "prefill": {"B": 1}, "decode_rows": {"S": 1}}
_SHARE = re.compile(r"\b(\d+) ?// ?N\b")


@dataclass(frozen=True)
class Region:
    """One compiled piece. `inputs`: (name, role, spec) in order; `body`: one line a step, the last returns a tuple."""

    name: str
    inputs: tuple[tuple[str, str, Spec], ...]
    outputs: tuple[Spec, ...]
    body: tuple[str, ...]

    @property
    def kind(self) -> str:
        """embed, layer or head."""
        return self.name.rsplit("_", 1)[0]

    def text(self) -> str:
        """The region as Python source."""
        inputs = "".join(f'    {name}: "{role} {spec.text()}",\n' for name, role, spec in self.inputs)
        outputs = "; ".join(s.text() for s in self.outputs)
        return f'def {self.name}(\n{inputs}) -> "{outputs}":\n' + "".join(f"    {line}\n" for line in self.body)

    def ops(self) -> dict[str, str]:
        """Each line's name -> its op, without the last line."""
        parts = (line.split(" = ", 1) for line in self.body[:-1])
        return {name: call.split("(", 1)[0] for name, call in parts}

    def shares(self) -> set[int]:
        """The sizes that are divided by the number of ranks."""
        return {int(size) for size in _SHARE.findall(self.text())}

    def at(self, ranks: int) -> Region:
        """One rank's region of so many ranks, under the same name. Every size of `shares` must be a multiple of `ranks`."""
        return self.parse(_SHARE.sub(lambda found: str(int(found[1]) // ranks), self.text()))

    @staticmethod
    def digest(text: str) -> str:
        """Eight hex digits of a region's text: equal forms of a layer get equal names."""
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @staticmethod
    def parse(text: str) -> Region:
        """Read `Region.text` back. Raises DamagedArtifact."""
        try:
            (function,) = ast.parse(text).body
            if not isinstance(function, ast.FunctionDef):
                raise SyntaxError("not a function")
            inputs = tuple((a.arg, *_roled(_text(a.annotation))) for a in function.args.args)
            outputs = tuple(Spec.parse(t)[1] for t in _text(function.returns).split("; "))
        except (SyntaxError, ValueError, TypeError, AttributeError) as error:
            raise DamagedArtifact("a region's text cannot be read", found=str(error)) from error
        return Region(function.name, inputs, outputs, tuple(ast.unparse(s) for s in function.body))


def _roled(text: str) -> tuple[str, Spec]:
    """(role, spec) of a region's input. Raises ValueError where the role is left out."""
    role, spec = Spec.parse(text)
    if role is None:
        raise ValueError(f"an input has no role: {text}")
    return role, spec


def _text(annotation: ast.expr | None) -> str:
    """The string that an annotation is. Raises ValueError."""
    if not isinstance(annotation, ast.Constant) or not isinstance(annotation.value, str):
        raise ValueError("a tensor's dtype and sizes are not written as text")
    return annotation.value


@dataclass(frozen=True)
class Step:
    """One call of a region, or a move of MOVES. Names: input:NAME, cache:keys.N, cache:values.N, weight:NAME, value:N.

    rows "last" means that only the last new token is needed unless all logits are asked for. fixed: what a move needs to know.
    """

    region: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    rows: str = "all"
    fixed: Mapping[str, int | str] = field(default_factory=dict)

    @property
    def moves(self) -> bool:
        """Whether it is a step between regions."""
        return self.region in MOVES


@dataclass(frozen=True)
class Place:
    """Where a published module begins and ends in a region: names of the values that it reads and that others read of it.

    "linear[96:128]" are columns of a value.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


Places = dict[str, dict[str, Place]]
"""Region -> module -> place. Inside a layer the module's path is relative to the layer, elsewhere it is whole."""


@dataclass(frozen=True)
class Program:
    """Regions by name, steps in order, the name of the logits (of another part than the text: of its result), where the
    published modules are in the regions, how the part runs over ranks, and its engine where that is not the artefact's own."""

    regions: dict[str, Region]
    steps: tuple[Step, ...]
    logits: str
    places: Places = field(default_factory=dict)
    mode: str = MODES[0]
    engine: str | None = None

    def to_json(self) -> dict[str, Any]:
        places = {region: {module: [list(p.inputs), list(p.outputs)] for module, p in found.items()}
                  for region, found in self.places.items()}
        return {"regions": sorted(self.regions), "logits": self.logits,
                **({"mode": self.mode} if self.mode != MODES[0] else {}),
                **({"engine": self.engine} if self.engine else {}),
                **({"places": {"version": PLACES_VERSION, "regions": places}} if places else {}),
                "steps": [{"region": s.region, "inputs": list(s.inputs), "outputs": list(s.outputs), "rows": s.rows,
                           **({"fixed": dict(s.fixed)} if s.fixed else {})} for s in self.steps]}

    @staticmethod
    def from_json(data: dict[str, Any], regions: dict[str, Region]) -> Program:
        """Raises DamagedArtifact where a step names an unknown region, or a value before it is made.

        Artefacts without places are read too, with none; IncompatibleArtifact for places of another version.
        """
        try:
            steps = tuple(Step(s["region"], tuple(s["inputs"]), tuple(s["outputs"]), s["rows"], dict(s.get("fixed", {})))
                          for s in data["steps"])
            program = Program(regions, steps, data["logits"], _places(data.get("places")), data.get("mode", MODES[0]),
                              data.get("engine"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedArtifact("program.json lacks a field", file="program.json", field=str(error)) from error
        program.check()
        return program

    def check(self) -> None:
        """The laws of a program: known regions, right number of arguments, values made before they are used."""
        if self.mode not in MODES:
            raise DamagedArtifact("a part of the program runs over ranks in no known way", field="mode", found=self.mode,
                                  expected=", ".join(MODES))
        if self.engine not in (None, FX):
            raise DamagedArtifact("a part of the program has an unknown engine", field="engine", found=self.engine,
                                  expected=f"none, which is the artefact's own, or {FX}")
        made: set[str] = set()
        for number, step in enumerate(self.steps):
            if step.moves:
                wrong = step.fixed.keys() - MOVES[step.region]
                if wrong or len(step.inputs) != len(step.outputs) or not set(step.inputs) <= made:
                    raise DamagedArtifact("a step between regions has wrong arguments", field=f"steps[{number}]",
                                          found=step.region)
                made.update(step.outputs)
                continue
            region = self.regions.get(step.region)
            if region is None:
                raise DamagedArtifact("a step calls an unknown region", field=f"steps[{number}]", found=step.region)
            if (len(step.inputs), len(step.outputs)) != (len(region.inputs), len(region.outputs)):
                raise DamagedArtifact("a step has another number of arguments than its region", field=f"steps[{number}]")
            unmade = [n for n in step.inputs if n.startswith("value:") and n not in made]
            if unmade:
                raise DamagedArtifact("a step uses a value before it is made", field=f"steps[{number}]", found=unmade[0])
            made.update(step.outputs)
        if self.logits not in made:
            raise DamagedArtifact("no step makes the logits", found=self.logits)

    def calls(self) -> int:
        return len(self.steps)

    def weights(self) -> dict[str, Spec]:
        """Every weight by its name, without "weight:"."""
        return {name.removeprefix("weight:"): spec for step in self.steps if not step.moves for name, (_, role, spec)
                in zip(step.inputs, self.regions[step.region].inputs, strict=True) if role == "weight"}

    def at(self, ranks: int) -> Program:
        """One rank's program of so many ranks; see `Region.at`."""
        return dataclasses.replace(self, regions={name: region.at(ranks) for name, region in self.regions.items()})


def written(programs: Mapping[str, Program]) -> dict[str, Any]:
    """program.json of a model's parts by name."""
    others = {name: program.to_json() for name, program in programs.items() if name != MAIN}
    return programs[MAIN].to_json() | ({"stages": others} if others else {})


def read(data: dict[str, Any], text_of: Callable[[str], str]) -> dict[str, Program]:
    """The parts that program.json describes. text_of: a region's name -> its text.

    Raises DamagedArtifact, IncompatibleArtifact.
    """
    stages = data.get("stages", {})
    if not isinstance(stages, dict) or not all(isinstance(stage, dict) for stage in stages.values()):
        raise DamagedArtifact("the stages of the program are no objects", file="program.json", field="stages")
    found = {name: read_part(part, text_of) for name, part in {MAIN: data, **stages}.items()}
    if found[MAIN].engine:
        raise DamagedArtifact("the text runs on the artefact's own engine", file="program.json", field="engine",
                              found=found[MAIN].engine)
    return found


def read_part(part: dict[str, Any], text_of: Callable[[str], str]) -> Program:
    """One part as program.json describes it. Raises DamagedArtifact, IncompatibleArtifact."""
    if not isinstance(part.get("regions"), list) or not all(isinstance(region, str) for region in part["regions"]):
        raise DamagedArtifact("a part of the program does not list its regions", file="program.json", field="regions")
    regions = {region: Region.parse(text_of(region)) for region in part["regions"]}
    wrong = [n for n, r in regions.items() if r.name != n]
    if wrong:
        raise DamagedArtifact("a region's text has another name than its file", field=wrong[0])
    return Program.from_json(part, regions)


def _places(data: Any) -> Places:
    """`Program.places` from its JSON, None where there was none. Raises IncompatibleArtifact, and what a wrong shape raises."""
    if data is None:
        return {}
    if data["version"] != PLACES_VERSION:
        raise IncompatibleArtifact("the places of modules are of another version", file="program.json",
                                   expected=PLACES_VERSION, found=data["version"])
    return {region: {module: Place(tuple(inputs), tuple(outputs)) for module, (inputs, outputs) in found.items()}
            for region, found in data["regions"].items()}


def held_slots(slots: int) -> int:
    """The slots that are allocated to a row of a cache of which `slots` are in use: at least one more, since compiled code was
    made for views that are never the whole cache, and a multiple of 32, which of any width are 64 bytes."""
    return (slots // 32 + 1) * 32
