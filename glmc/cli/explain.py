"""`glmc explain`: what a name means, in the words of its own source, read with `ast`; nothing explained is imported."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

import glmc
import glmc.passes
from glmc import errors, knobs
from glmc.cli import arguments, show
from glmc.errors import GlmcError, InternalError, UnknownName
from glmc.target import TARGETS

PASSES = Path(glmc.passes.__file__).parent
KERNELS = Path(glmc.__file__).parent / "kernels"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A fusion, op, pass, error, exit code, knob or target.",
                                     show_default=False)]


def explain(name: Name, json: arguments.Json = False) -> None:
    """Say what a name means: a fusion, op, pass, error, exit code, knob or target."""
    known = _known()
    if name not in known:
        parts = sorted({p.stem for p in (*_files(PASSES / "fusions"), *_files(PASSES), *_files(PASSES / "tidy"))})
        hint = arguments.nearest(name, known) or f"known: errors, knobs, targets, and {', '.join(parts)}"
        raise UnknownName("nothing has this name", field="name", found=name, hint=hint)
    answer = known[name]()
    if json:
        show.data(answer)
        return
    screen = show.console()
    screen.print(f"{answer['kind']} {answer['name']}", style="bold")
    screen.print(answer["text"], soft_wrap=True)
    if answer.get("reference"):
        screen.print(f"\n{answer['reference']}", soft_wrap=True)
    if answer.get("pattern"):
        pattern = answer["pattern"]
        screen.print("\nforms in bfloat16:\n" + "\n".join(f"  {form}" for form in pattern["forms"]), soft_wrap=True)
        screen.print("\nthe first, traced (_ is closed by the proof at each site):\n\n" + pattern["steps"], soft_wrap=True)
        if pattern["spellings"]:
            screen.print("\nother spellings, brought to this one:\n" + "\n".join(f"  {s}" for s in pattern["spellings"]),
                         soft_wrap=True)
    if answer.get("facts"):
        screen.print(show.facts("", answer["facts"]))


def _known() -> dict[str, Callable[[], dict[str, Any]]]:
    """Every name that can be explained, with what explains it. Where two things share a name the fusion comes first."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}

    def add(name: str, make: Callable[..., dict[str, Any]], *args: Any) -> None:
        found.setdefault(name, lambda: make(*args))

    for path in _files(PASSES / "fusions"):
        add(path.stem, _fusion, path)
    for folder in sorted(p for p in KERNELS.iterdir() if (p / "__init__.py").is_file()):
        add(folder.name, _op, folder)
    for path in (*_files(PASSES), *_files(PASSES / "tidy")):
        add(path.stem, _pass, path)
    for package in ("tidy", "fusions"):
        add(package, _pass, PASSES / package / "__init__.py")
    classes = [c for c in vars(errors).values()
               if isinstance(c, type) and issubclass(c, GlmcError) and c is not GlmcError]
    for error in classes:
        add(error.code, _error, error)
        add(error.__name__, _error, error)
        add(str(error.exit), _exit, error.exit, [c for c in classes if c.exit == error.exit])
    for knob in knobs.KNOBS.values():
        add(knob.name, _knob, knob)
    for target in TARGETS.values():
        add(target.name, _target, target)
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*.py") if not p.stem.startswith("_"))


def _parsed(path: Path) -> tuple[str, ast.Module, str]:
    """(source, tree, docstring). Raises InternalError: the files are glmc's own."""
    try:
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise InternalError("a file of glmc cannot be read", file=path, found=error) from error
    return source, tree, ast.get_docstring(tree) or ""


def _answer(kind: str, name: str, text: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "name": name, "text": text, **more}


def _fusion(path: Path) -> dict[str, Any]:
    source, tree, text = _parsed(path)
    reference = next((ast.get_source_segment(source, node) for node in tree.body
                      if isinstance(node, ast.FunctionDef) and node.name == "reference"), None)
    reference = reference and re.sub(r"  # noqa.*", "", reference)
    return _answer("fusion", path.stem, text, reference=reference, pattern=_pattern(path.stem),
                   facts={**_machines(KERNELS / path.stem), **_targets(path.stem)}, file=f"passes/fusions/{path.name}")


def _pattern(fusion: str) -> dict[str, Any]:
    """The reference as it is traced in bfloat16: every form, the steps of the first, and the other spellings."""
    import torch

    from glmc.passes.declare import load
    from glmc.passes.pattern import patterns

    declared = load(fusion)
    forms = patterns(declared.maths, torch.bfloat16)
    return {"forms": [p.form() for p in forms], "steps": forms[0].text(),
            "spellings": [f"{f.__qualname__}: {inspect.getdoc(f) or ''}" for f in (s.theirs.function for s in declared.also)]}


def _targets(fusion: str) -> dict[str, str]:
    """Which targets have a kernel."""
    has = {name: (KERNELS / fusion / f"{target.machine}.py").is_file() for name, target in TARGETS.items()}
    return {"taken on": ", ".join(n for n in has if has[n]) or "no target",
            "no kernel on": ", ".join(n for n in has if not has[n]) or "none"}


def _op(folder: Path) -> dict[str, Any]:
    return _answer("op", folder.name, _parsed(folder / "__init__.py")[2], facts=_machines(folder))


def _machines(folder: Path) -> dict[str, str]:
    """Machine file -> the first line of its docstring, for the files of an op's folder."""
    return {f"kernels/{folder.name}/{path.name}": _parsed(path)[2].split("\n")[0] for path in _files(folder)}


def _pass(path: Path) -> dict[str, Any]:
    inside = path.relative_to(PASSES)
    name = path.parent.name if path.stem == "__init__" else path.stem
    return _answer("pass", name, _parsed(path)[2], file=f"passes/{inside.as_posix()}")


def _error(error: type[GlmcError]) -> dict[str, Any]:
    told = {"class": error.__name__, "code": error.code, "exit code": error.exit, "kind of": error.__mro__[1].__name__}
    if error.hint:
        told["hint"] = error.hint
    return _answer("error", error.code, inspect.cleandoc(error.__doc__ or ""), facts=told)


def _exit(code: int, classes: list[type[GlmcError]]) -> dict[str, Any]:
    return _answer("exit code", str(code), inspect.cleandoc(classes[0].__doc__ or ""),
                   facts={c.code: inspect.cleandoc(c.__doc__ or "") for c in classes})


def _knob(knob: knobs.Knob) -> dict[str, Any]:
    kind = {int: "a whole number", str: "text", list: "names separated by commas"}[knob.kind]
    default = knob.default if knob.kind is int else knob.default or "none"
    return _answer("knob", knob.name, knob.sentence, facts={"kind": kind, "default": default})


def _target(target: Any) -> dict[str, Any]:
    told = {"kernels": f"{target.machine}.py", "engine": target.engine,
            "bandwidth": f"{target.bandwidth / 1e9:,.0f} GB/s", "launch": f"{target.launch_us:g} us a step"}
    return _answer("target", target.name, "glmc compiles for it; `glmc doctor` says whether this machine can.", facts=told)
