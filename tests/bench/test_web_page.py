"""The report's page: self-contained, small for a deep model, escaped, and right in a real browser."""

from __future__ import annotations

import copy
import importlib.util
import re
from html.parser import HTMLParser

import benching
import browsing
import pytest

from glmc.bench.web_page import web_page
from glmc.bench.work import Work
from glmc.errors import MissingPackage

LAYERS = 92
FUSIONS = ("add_rms_norm", "attention", "moe_experts", "moe_route", "qk_norm_rope", "rms_norm", "rope", "silu_mul")
VOID = {"meta", "link", "br", "img", "input", "path", "use", "rect", "circle", "line"}


@pytest.fixture(scope="module")
def report():
    """Of a model of 92 layers, beside three others, on three lengths and two batches."""
    works = tuple(Work(length, 16, rows) for rows in (1, 4) for length in (32, 128, 512))
    made = benching.reported({"glmc": benching.noisy(1), "eager": benching.noisy(2, 2), "inductor": benching.noisy(3, 1.4),
                              "<b>other</b>.glmc": benching.noisy(4, 0.9)}, works, 30)
    made["artifact"]["ledger"] = [
        {"fusion": name, "expected": LAYERS, "proved": LAYERS, "taken": LAYERS // 2, "predicted_us": 12.5, "measured_us": 11.0,
         "refused": [{"site": f"model.layers.{i}.{name}", "reason": "shares steps with another, which gains more"}
                     for i in range(LAYERS // 2)]} for name in FUSIONS]
    ops = [{"region": f"layer_{i % 3}", "op": f"linear(weight_{i})", "kernel": FUSIONS[i % 8], "calls": LAYERS, "us": 100.0 - i,
            "share": 0.02} for i in range(60)]
    step = {**benching.STEP, "ops": ops, "timeline": [[i % 60, 1.0] for i in range(LAYERS * 20)]}
    made["profile"] = {"engine": "native", "steps": [step]}
    made["interrupted"] = "interrupted after 30 of 90 rounds"
    return made


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(web_page(report), encoding="utf-8")
    return path


class Balanced(HTMLParser):
    """Every element that is opened is closed in its turn; ids are told apart."""

    def __init__(self):
        super().__init__()
        self.open, self.faults, self.ids = [], [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        if tag not in VOID and (not self.open or self.open.pop() != tag):
            self.faults.append((tag, self.getpos()))


def test_the_page_is_small_whole_and_asks_for_nothing(page):
    text = page.read_text()
    assert len(text) < 2_000_000
    links = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(link.startswith(("#", "data:")) for link in links), links
    assert not re.search(r"@import|url\((?!#)", text)
    assert "<script" not in text
    parsed = Balanced()
    parsed.feed(text)
    assert parsed.faults == []
    assert parsed.open == []
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_page_holds_what_the_report_does(page, report):
    text = page.read_text()
    for said in (report["artifact"]["digest"], "interrupted after 30 of 90 rounds", "pp512+tg16 b4", "roofline", "Cold start",
                 "moe_experts", "12.5", "368 sites were refused", "linear(weight_0)"):
        assert str(said) in text
    assert "<b>other</b>" not in text
    assert "&lt;b&gt;other&lt;/b&gt;" in text


def test_a_report_of_nothing_still_makes_a_page(report):
    empty = {**copy.deepcopy(report), "results": [], "profile": None, "probe": None, "probes": []}
    for one in empty["contenders"]:
        one["cold_start"] = None
    assert "Ledger" in web_page(empty)


def test_without_matplotlib_the_page_says_how_to_get_it(report, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="matplotlib"):
        web_page(report)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desk", "phone"])
def test_the_page_in_a_browser(page, size, scheme):
    with browsing.opened(page, size, scheme) as seen:
        assert seen.complaints == []
        assert seen.requests == [page.as_uri()]
        assert seen.seconds < 1
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert browsing.unnamed(seen.page) == []
        assert browsing.faint(seen.page) == []
        assert seen.page.evaluate("document.querySelectorAll('figure svg').length") == 10
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == (
            "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
