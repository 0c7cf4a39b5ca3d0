"""drawing.json of surveyed models: every site, every plain step, what each fusion swallowed, and the pages made of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import models
import once
import pytest
from typer.testing import CliRunner

from glmc import epilogue, families
from glmc.artifact import Artifact
from glmc.cli.main import app
from glmc.drawing import runs
from glmc.html.steps import steps
from glmc.native.by_line import kernels_by_line
from glmc.program import MAIN, Region
from glmc.target import named

SHOWN = ["glm4_moe", "glm4v", "glm_moe_dsa", "glm_image_dit"]


@pytest.fixture(scope="module", params=[name for name in SHOWN if name in families.names()])
def surveyed(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawing")
    (folder / "config.json").write_text(json.dumps(models.tiny_config(request.param)))
    return once.survey(folder / "config.json", named("cuda:sm_90"))


def regions(surveyed):
    return {name: region for program in surveyed.programs.values() for name, region in program.regions.items()}


def test_every_site_is_told_once_with_what_became_of_it(surveyed):
    told = surveyed.drawing["sites"]
    for fusion, row in surveyed.ledger.rows.items():
        mine = [site for site in told if site["fusion"] == fusion]
        assert sum(site["count"] for site in mine) == sum(row.proved.values())
        assert sum(site["count"] for site in mine if site["reason"] is None) == row.taken
    assert len({(s["fusion"], s["place"], s["reason"]) for s in told}) == len(told)


def test_every_region_stands_beside_its_plain_steps(surveyed):
    drawing = surveyed.drawing
    assert drawing["regions"].keys() == regions(surveyed).keys()
    for name, region in regions(surveyed).items():
        told = drawing["regions"][name]
        plain = drawing["plain"][told["plain"]]
        before = {step.name for step in steps(Region.parse(plain["text"]), plain["shapes"]) if step.kind == "step"}
        after = {step.name for step in steps(region, told["shapes"]) if step.kind == "step"}
        swallowed = Counter(line for site in told["sites"] if site["line"] for line in site["lines"])
        assert set(swallowed.values()) <= {1}, "no step is swallowed twice"
        assert {site["line"] for site in told["sites"] if site["line"]} <= after
        stands = after - {site["line"] for site in told["sites"] if site["line"]}
        assert stands <= told["same"].keys(), "what no fusion made was there before"
        assert before - swallowed.keys() - set(told["same"].values()) <= {
            line for line in before if line.startswith("cat")}, "only weights that were joined are gone"
        assert {told["same"][line] for line in stands} <= before
        assert stands | {site["line"] for site in told["sites"] if site["line"]} <= told["shapes"].keys()


def test_kernels_are_files_of_the_target(surveyed):
    found = {kernel for told in surveyed.drawing["regions"].values() for kernel in told["kernels"].values()}
    assert "glmc/kernels/linear/triton.py" in found
    assert all(kernel.endswith("/triton.py") for kernel in found)


def test_a_line_that_a_product_does_in_its_launch_names_the_product(surveyed):
    joined = {name: epilogue.joined(region).ops() for name, region in regions(surveyed).items()}
    lines = [surveyed.drawing["regions"][name]["kernels"][line] for name, ops in joined.items() for line, op in ops.items()
             if op == epilogue.JOINED]
    assert lines or surveyed.family.__name__.endswith("glm_image_dit")
    assert set(lines) <= {"glmc/kernels/linear/triton.py"}


def test_native_kernels_are_told_by_line():
    program = once.survey(models.made("glm4_moe").checkpoint, named("cpu")).programs[MAIN]
    found = [kernels_by_line(region) for region in program.regions.values()]
    named_here = {kernel for lines in found for kernels in lines.values() for kernel in kernels}
    assert {"attention", "swiglu", "linear", "moe_experts", "embedding"} <= named_here
    for lines, region in zip(found, program.regions.values(), strict=True):
        assert lines.keys() <= region.ops().keys()
        assert not any(region.ops()[line].startswith("glmc.silu_mul") for line in lines), "the product does that too"


@pytest.mark.parametrize(("numbers", "said"), [([3, 1, 2], "1..3"), ([0, 2, 2, 5, 6], "0, 2, 5..6"), ([-1], ""), ([], "")])
def test_layers_are_told_as_runs(numbers, said):
    assert runs(numbers) == said


def test_an_artefact_is_drawn_without_torch(tmp_path):
    out, page = models.made("glm4_moe").out, tmp_path / "page.html"
    code = ("import sys\nfrom typer.testing import CliRunner\nfrom glmc.cli.main import app\n"
            f"done = CliRunner().invoke(app, ['inspect', {str(out)!r}, '--html', {str(page)!r}])\n"
            "print(done.exit_code, done.stdout.strip(), 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["0", str(page), "False"]
    text = page.read_text()
    opened = Artifact.open(out)
    assert opened.json("drawing.json")["version"] == 1
    for word in (opened.manifest["digest"], "model.layers.*.self_attn.qkv_proj.weight", "before the passes"):
        assert word in text
    for row in opened.json("ledger.json")["ledger"]:
        assert not row["proved"] or row["fusion"] in text


def test_a_plan_is_drawn(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(models.tiny_config("glm4_moe")))
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["plan", str(tmp_path / "config.json"), "--html", str(page), "--json"])
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert told["html"] == str(page)
    assert "pictured" not in told
    assert "glmc.moe_experts" in page.read_text()


def test_a_page_is_never_written_over(tmp_path):
    page = tmp_path / "page.html"
    page.write_text("mine")
    for words in (["inspect", str(models.made("glm4_moe").out)], ["plan", str(models.made("glm4_moe").checkpoint)]):
        done = CliRunner().invoke(app, [*words, "--html", str(page)])
        assert done.exit_code == 2
        assert "already" in done.stderr
    assert page.read_text() == "mine"
    done = CliRunner().invoke(app, ["plan", str(models.made("glm4_moe").checkpoint), "--html", str(tmp_path / "no" / "x.html")])
    assert done.exit_code == 5
