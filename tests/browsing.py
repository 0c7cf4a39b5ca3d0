"""A headless Chromium, where there is one: a page opened, what it asked for and complained of, and how long it took."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run")
SIZES = {"desk": {"width": 1200, "height": 900}, "phone": {"width": 390, "height": 844}}


def chromium() -> str:
    """The browser's path; without one, or without playwright, the test is skipped and says so."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None or importlib.util.find_spec("playwright") is None:
        pytest.skip("there is no Chromium here, or no playwright")
    return found


@contextmanager
def opened(path: Path, size: str = "desk", scheme: str = "light") -> Iterator[Any]:
    """.page, .requests (URLs), .complaints (of the console), .seconds until it was loaded."""
    browser = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playing:
        with playing.chromium.launch(executable_path=browser, args=FLAGS) as started:
            page = started.new_context(viewport=SIZES[size], color_scheme=scheme, offline=False).new_page()
            seen = SimpleNamespace(page=page, requests=[], complaints=[], seconds=0.0)
            page.on("console", lambda said: seen.complaints.append(said.text))
            page.on("pageerror", lambda fault: seen.complaints.append(str(fault)))
            page.on("request", lambda asked: seen.requests.append(asked.url))
            page.goto(path.as_uri())
            times = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
            seen.seconds = times / 1000
            yield seen


def unnamed(page: Any) -> list[str]:
    """Elements that say nothing to those who do not see them: drawings and regions without a name, tables without a caption."""
    return page.evaluate("""() => [
      ...[...document.querySelectorAll('svg')].filter(e => e.getAttribute('role') !== 'img' || !e.getAttribute('aria-label')),
      ...[...document.querySelectorAll('[role=region], [role=group], nav')].filter(e => !e.getAttribute('aria-label')),
      ...[...document.querySelectorAll('table')].filter(e => !e.caption || !e.tHead),
      ...[...document.querySelectorAll('input')].filter(e => !e.labels.length && !e.getAttribute('aria-label')),
      ...[...document.querySelectorAll('section')].filter(e => !document.getElementById(e.getAttribute('aria-labelledby')))
    ].map(e => e.outerHTML.slice(0, 80))""")


def faint(page: Any) -> list[str]:
    """Texts whose contrast with the page's ground is below 4.5."""
    return page.evaluate("""() => {
      const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const ground = light(getComputedStyle(document.body).backgroundColor), found = new Set();
      for (const e of document.querySelectorAll('h1, h2, h3, p, td, th, a, li, code, figcaption, summary, caption, svg text')) {
        const style = getComputedStyle(e), own = light(e.closest('svg') && e.tagName === 'text' ? style.fill : style.color);
        if ((Math.max(own, ground) + 0.05) / (Math.min(own, ground) + 0.05) < 4.5) found.add(e.tagName + ' ' + style.color);
      }
      return [...found]; }""")
