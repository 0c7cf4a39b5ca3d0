"""The page of `glmc plan --html` on the 92-layer GLM-4.5 configuration in a headless Chromium: size, time to open, requests.

Also what the drawing adds to the survey.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import summary
from playwright.sync_api import sync_playwright
from report import ROOT, Report, default_out

from glmc import survey as surveying
from glmc.cli.plan import pictured
from glmc.html.program import program_page
from glmc.planner import plan

SECONDS, BYTES, ADDED = 1.0, 2_000_000, 0.05
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]
HOW = ("from `goto` of the file until its load event, each round in a new page, the worst of them; the drawing's share of the "
       "survey is the time inside it over that of the rest")


def opened(file: Path, rounds: int) -> tuple[list[float], list[str], list[str]]:
    """Seconds of each round, what the console said, and the requests beside the page itself."""
    seconds, said, asked = [], [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for _ in range(rounds):
            page = browser.new_page(viewport={"width": 1500, "height": 1000})
            page.on("console", lambda message: said.append(message.text))
            page.on("pageerror", lambda error: said.append(str(error)))
            page.on("request", lambda one: asked.append(one.url))
            began = time.perf_counter()
            page.goto(file.as_uri())
            seconds.append(time.perf_counter() - began)
            page.close()
        browser.close()
    return seconds, said, [url for url in asked if url != file.as_uri()]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--config", type=Path, default=ROOT / "tests" / "data" / "glm-4.5.json")
    options.add_argument("--target", default="cpu")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--out", type=Path, default=default_out("drawing"))
    given = options.parse_args()
    report = Report("drawing", given.out)
    spent = [0.0]

    def timed(inner: Any) -> Any:
        def run(*args: Any) -> Any:
            began = time.perf_counter()
            made = inner(*args)
            spent[0] += time.perf_counter() - began
            return made

        return run

    surveying.Before, surveying.drawing = timed(surveying.Before), timed(surveying.drawing)
    answer = plan(given.config, target=given.target)
    began = time.perf_counter()
    text = program_page(pictured(answer))
    drawn = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "page.html"
        file.write_text(text, encoding="utf-8")
        seconds, said, asked = opened(file, given.rounds)
    report.add("bytes of the page", len(text.encode()), "bytes", BYTES)
    report.add("opens in", max(seconds), "s", SECONDS)
    report.add("requests", len(asked), "", 0, "equal")
    report.add("lines of the console", len(said), "", 0, "equal")
    report.add("the page is made in", drawn, "s")
    report.add("added to the survey", spent[0] / (answer.seconds - spent[0]), "of it", ADDED)
    report.finish(HOW, {"config": given.config.name, "target": given.target, "layers": answer.layers,
                        "open_seconds": summary(seconds, 3), "survey_seconds": answer.seconds, "drawing_seconds": spent[0]})


if __name__ == "__main__":
    main()
