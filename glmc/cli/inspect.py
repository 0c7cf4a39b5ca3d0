"""`glmc inspect`: what an artefact holds, from its JSON files and region texts; no weights.

torch is asked only whether an artefact for a GPU runs here.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from typing import Any

import typer
from rich.table import Table

from glmc import epilogue
from glmc.artifact import LINKED, Artifact
from glmc.artifact_linked import summary
from glmc.cli import arguments, pages, show
from glmc.errors import DamagedArtifact
from glmc.html.program import Pictured, program_page
from glmc.placement import read_placement
from glmc.program import KERNELS, MAIN, Program, read, written

SOURCES = "sources.json"
DRAWING = "drawing.json"


def inspect(out: arguments.Out, html: pages.Html = None, json: arguments.Json = False) -> None:
    """Show what an artefact holds: manifest, files, regions, ledger, proofs. Reads no weights."""
    pages.free(html)
    opened = Artifact.open(arguments.artifact(out))
    try:
        programs = _programs(opened)
        ledger, proofs = opened.json("ledger.json"), opened.json("proofs.json")
        if html is not None:
            pages.write(html, program_page(pictured(opened, programs, ledger)))
        if json:
            show.data({"path": str(opened.folder), "manifest": opened.manifest, "program": written(programs),
                       "ranks": _ranks(opened),
                       **ledger, **proofs, **({"sources": opened.json(SOURCES)} if SOURCES in opened.files else {}),
                       **({"kernels": opened.json(KERNELS)["kernels"], "here": _here(opened, programs[MAIN]),
                           "products": epilogue.counted(programs[MAIN])} if KERNELS in opened.files else {}),
                       **({"linked": summary(opened)} if LINKED in opened.files else {}),
                       **({"html": str(html)} if html else {})})
            return
        if html is not None:
            typer.echo(html)
            return
        show.console().print(
            show.facts("artefact", _facts(opened, programs[MAIN])),
            show.rows("files", ("file", "bytes"), _files(opened)),
            _regions(programs), *_notes("notes", ledger["notes"]), *_notes("over ranks", ledger.get("ranks", [])),
            *_kernels(opened), *_forms(opened, proofs), *_pieces(proofs),
            *show.ledger(ledger["ledger"]),
            proofs_table(proofs["proofs"]))
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise DamagedArtifact("a file of the artefact lacks a field, or holds another type", file=opened.folder,
                              found=f"{type(error).__name__}: {error}") from error


def _files(opened: Artifact) -> list[tuple[str, int]]:
    """Each file, but those of kernels, which `_kernels` lists, in one line."""
    kernels = [name for name in opened.files if name.startswith("kernels/") and name != KERNELS]
    lines = [(name, entry["bytes"]) for name, entry in opened.files.items() if name not in kernels]
    return lines + [(f"kernels/, {len(kernels)} files", sum(opened.files[n]["bytes"] for n in kernels))] * bool(kernels)


def _kernels(opened: Artifact) -> list[Table]:
    """Each kernel that was built ahead, and what the compiler says that it uses; none where the target has none."""
    if KERNELS not in opened.files:
        return []
    index = opened.json(KERNELS)
    lines = [(k["name"], k["warps"], k["registers"], k["shared_bytes"], k["spilled_bytes"]) for k in index["kernels"]]
    return [show.rows(f"kernels built ahead with triton {index['triton']}; the rest is torch's",
                      ("kernel", "warps", "registers", "shared bytes", "spilled bytes"), lines)]


def _forms(opened: Artifact, proofs: dict[str, Any]) -> list[Table]:
    """How weights are kept for the native library, or which stay coded for a GPU, and how far the code that reads them is off;
    none where all are as the regions' text has them."""
    kept, engine = opened.json("program.json").get("kept"), opened.manifest["engine"]
    if kept is None:
        return []
    counts: Counter[str] = Counter()
    elements: Counter[str] = Counter()
    for one in kept["weights"].values():
        counts[one["form"]] += 1
        elements[one["form"]] += math.prod(one["sizes"])
    title = {"native": "weights, as the native library keeps them", "iree": "matrices in panels"}
    forms = show.rows(title.get(engine, "weights in the checkpoint's own codes"),
                      ("form", "weights", "elements"), [(form, counts[form], elements[form]) for form in sorted(counts)])
    if engine not in title:
        return [forms, show.rows("products with coded matrices, against float64 with the decoded ones",
                                 ("kernel", "form", "sizes", "weights", "worst error", "of the plain product", "limit"),
                                 [(p["kernel"], p["form"], " x ".join(map(str, p["sizes"])), p["places"], p["coded_error"],
                                   p["plain_error"], p["limit"]) for p in proofs["coded"]])]
    return [forms, show.rows("compiled code of each region, against its text in float32",
                             ("region", "worst error", "of the text in its own dtype", "limit", "note"),
                             [(p["region"], p["native_error"], p["text_error"], p["limit"], p["note"] or "")
                              for p in proofs["native"]])]


def _pieces(proofs: dict[str, Any]) -> list[Table]:
    """Each region that several ranks run in pieces, and how far they are off together; none where nothing is cut."""
    lines = [(p["region"], p["pieces"], p["ranks"], p["error"], p["limit"], p["note"] or "") for p in proofs.get("placed", [])]
    return [show.rows("regions of several ranks, all pieces against the uncut region in float32",
                      ("region", "pieces", "ranks", "worst error", "limit", "note"), lines)] if lines else []


def _ranks(opened: Artifact) -> dict[str, Any]:
    """How many ranks may run the text model, in which mode, and how many weights are cut among them."""
    placement = read_placement(opened.json("program.json"), lambda name: opened.read(f"regions/{name}.region").decode())
    if placement is None:
        return {"numbers": [1], "mode": None, "cut": 0}
    return {"numbers": [1, *placement.ranks], "mode": placement.program.mode, "cut": len(placement.cuts)}


def _ranks_text(found: dict[str, Any]) -> str:
    numbers = ", ".join(map(str, found["numbers"]))
    return f"{numbers}; {found['mode']}, {found['cut']} weights cut" if found["cut"] else numbers


def proofs_table(proofs: list[dict[str, Any]]) -> Table:
    """Each fusion's distinct sites and its worst error beside that of the steps it replaced; what was replayed otherwise."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for proof in proofs:
        groups.setdefault(proof["fusion"], []).append(proof)
    return show.rows("proofs (error against float64, relative to the largest result of a row)",
                     ("fusion", "distinct", "sites", "worst kernel error", "worst error of the steps", "most rows", "note"),
                     [(name, len(group), sum(p["places"] for p in group), max(p["kernel_error"] for p in group),
                       max(p["reference_error"] for p in group), max(p.get("rows", 0) for p in group),
                       "; ".join(dict.fromkeys(p["note"] for p in group if p.get("note"))))
                      for name, group in sorted(groups.items())])


def _programs(opened: Artifact) -> dict[str, Program]:
    """The parts that program.json describes with their regions' texts, checked."""
    return read(opened.json("program.json"), lambda name: opened.read(f"regions/{name}.region").decode())


def _notes(title: str, notes: list[str]) -> list[Table]:
    """What was said while compiling, such as why a part runs on another engine; none where nothing was."""
    return [show.rows(title, ("note",), [(note,) for note in notes])] if notes else []


def _regions(programs: dict[str, Program]) -> Table:
    calls = Counter(step.region for program in programs.values() for step in program.steps)
    return show.rows("regions", ("region", "part", "over ranks", "calls", "inputs", "weights", "steps inside"),
                     [(name, f"{part} ({program.engine})" if program.engine else part, program.mode, calls[name],
                       len(region.inputs),
                       sum(role == "weight" for _, role, _ in region.inputs), len(region.body) - 1)
                      for part, program in programs.items() for name, region in program.regions.items()])


def _sources(sources: dict[str, Any]) -> str:
    """What sources.json says in a line: tensors read, weights by form, tensors that nothing read."""
    forms = ", ".join(f"{count:,} {form}" for form, count in sources["forms"].items())
    return f"{sources['read']:,} tensors (weights: {forms}); {sources['unread']['count']:,} unread"


def linked_text(told: dict[str, int]) -> str:
    """What `summary` says of the linked files, in a line."""
    files = "a file" if told["files"] == 1 else f"{told['files']:,} files"
    return f"{show.bytes_text(told['bytes'])}: {told['tensors']:,} weights in {files} shared with the checkpoint"


def _linked(told: dict[str, int]) -> str:
    return (f"{linked_text(told)}, where no digest covers the other {show.bytes_text(told['other_bytes'])}; "
            "editing the checkpoint in place breaks this artefact")


def _here(opened: Artifact, program: Program) -> str:
    """Whether an artefact with kernels of its own runs on this machine."""
    lacking = [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]
    if lacking:
        return f"not known, not installed: {', '.join(lacking)}"
    from glmc.runtime.verdict import verdict

    return verdict(opened, program).text()


def _products(counts: dict[str, int]) -> str:
    """What `epilogue.counted` found, in a line."""
    return (f"{counts['products']:,} a step, of which with few rows {counts['gated']:,} join gate and up in their launch, "
            f"{counts['adding']:,} add terms and {counts['widening']:,} widen what they read")


def pictured(opened: Artifact, programs: dict[str, Program], ledger: dict[str, Any]) -> Pictured:
    """What the page of an artefact shows."""
    kept = opened.json("program.json").get("kept", {}).get("weights", {})
    drawing = opened.json(DRAWING) if DRAWING in opened.files else {}
    return Pictured(
        opened.folder.absolute().name, _facts(opened, programs[MAIN]),
        {name: part.to_json() for name, part in programs.items()},
        {name: region.text() for part in programs.values() for name, region in part.regions.items()}, ledger["ledger"],
        drawing, kept, [*ledger.get("broken", []), *ledger["notes"], *ledger.get("ranks", [])])


def _facts(opened: Artifact, program: Program) -> dict[str, Any]:
    manifest = opened.manifest
    bounds = manifest["bounds"]
    machine = manifest["machine"]
    return {
        "path": opened.folder,
        "digest": manifest["digest"],
        "family": manifest["family"],
        "dims": ", ".join(f"{k} {v}" for k, v in manifest["dims"].items() if k != "model_type"),
        "dtype": manifest["dtype"] + (f", weights {quant}" if (quant := manifest.get("quant")) else ""),
        "bounds": f"{bounds['max_batch']} rows of at most {bounds['max_len']} tokens",
        "target": f"{manifest['target']}, engine {manifest['engine']}",
        "made with": f"glmc {manifest['glmc']}, torch {manifest['torch']}, format {manifest['format_version']}",
        "made for": f"{machine['arch']} with {', '.join(machine['cpu_flags']) or 'no known instruction sets'}" if machine
                    else "any CPU" if manifest["engine"] == "native" else manifest["target"],
        "ranks": _ranks_text(_ranks(opened)),
        **({"here": _here(opened, program), "products": _products(epilogue.counted(program))}
           if KERNELS in opened.files else {}),
        "source": manifest["source"],
        **({"made from": _sources(opened.json(SOURCES))} if SOURCES in opened.files else {}),
        "size": show.bytes_text(sum(e["bytes"] for e in opened.files.values() if "linked" not in e)),
        **({"linked": _linked(summary(opened))} if LINKED in opened.files else {}),
    }
