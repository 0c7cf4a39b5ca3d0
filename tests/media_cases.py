"""What the tests of runtime/media share: recorded cases, settings, and functions cut out of transformers' source."""

from __future__ import annotations

import ast
import importlib.util
import json
from pathlib import Path
from typing import Any

from glmc.runtime.media.settings import Settings, Sizing, Tokens

TOKENS = Tokens(151343, 151344, 151339, 151340, 151341, 151342)
DATA = Path(__file__).parent / "data" / "multimodal"


def recorded(name: str) -> Any:
    """A file of tests/data/multimodal."""
    return json.loads((DATA / f"{name}.json").read_text())


def limited(size: dict[str, int], factor: int = 28) -> Sizing:
    """A sizing with recorded limits."""
    return Sizing(shortest=size["shortest_edge"], longest=size["longest_edge"], expand=factor // 28)


def of(sampler: str, **changes: Any) -> Settings:
    """The class defaults of a sampler's processors."""
    video = Sizing(longest=87_478_720 if sampler == "glmga" else 47_040_000)
    return Settings(**{"image": Sizing(), "video": video, "sampler": sampler, "tokens": TOKENS,
                       "stamps": "seconds" if sampler == "glm4v" else "tenths", **changes})


def published(module: str) -> Path:
    """A file of the transformers package, which need not be importable: its video processors want torchvision."""
    spec = importlib.util.find_spec("transformers")
    return Path(spec.submodule_search_locations[0]) / f"{module}.py"


def cut_out(module: str, name: str, **names: Any) -> Any:
    """The function or method `name` of a file of transformers, compiled alone with `names` around it."""
    tree = ast.parse(published(module).read_text())
    found = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name)
    found.returns, found.decorator_list = None, []
    for argument in [*found.args.args, *found.args.kwonlyargs, found.args.kwarg]:
        if argument is not None:
            argument.annotation = None
    scope = dict(names)
    exec(compile(ast.Module([found], []), module, "exec"), scope)
    return scope[name]


def class_values(module: str, name: str, **names: Any) -> dict[str, Any]:
    """What the body of a class of transformers assigns, as far as it can be worked out alone."""
    tree = ast.parse(published(module).read_text())
    body = next(node.body for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name)
    made = {}
    for node in body:
        if isinstance(node, ast.Assign):
            try:
                made[node.targets[0].id] = eval(compile(ast.Expression(node.value), module, "eval"), dict(names))
            except NameError:
                continue
    return made
