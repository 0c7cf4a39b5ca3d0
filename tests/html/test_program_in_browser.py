"""The page of a program in a headless Chromium: quick, alone, without an error, usable by mouse, keys and touch."""

from __future__ import annotations

import shutil
import time

import pytest
from html_pages import ninety_two_layers

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", "--no-first-run"]
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    made = tmp_path_factory.mktemp("page") / "page.html"
    made.write_text(ninety_two_layers(), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(params=[("light", 1500), ("dark", 390)], ids=["desk-light", "phone-dark"])
def page(request, browser, file):
    scheme, width = request.param
    made = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    said, asked = [], []
    made.on("console", lambda message: said.append(message.text))
    made.on("pageerror", lambda error: said.append(str(error)))
    made.on("request", lambda one: asked.append(one.url))
    began = time.perf_counter()
    made.goto(file.as_uri())
    made.seconds, made.width = time.perf_counter() - began, width
    yield made
    assert said == []
    assert asked == [file.as_uri()]
    made.close()


def lit(page, side):
    return page.evaluate(f"[...document.querySelectorAll('.{side} .n.on')].map((one) => one.dataset.n).sort()")


def test_it_opens_within_a_second_and_fits_the_width(page, file):
    assert page.seconds < 1
    assert file.stat().st_size < 2_000_000
    assert page.evaluate("document.documentElement.scrollWidth") <= page.width


def test_a_fused_step_shows_what_it_swallowed_and_back(page):
    page.check(".sides input[value=both]", force=True)
    page.locator(".after .n.fused[data-n=rms_norm]").first.click()
    assert lit(page, "after") == ["rms_norm"]
    swallowed = lit(page, "before")
    assert len(swallowed) == 8
    assert page.locator("#panel").inner_text().count("aten.") == 8
    page.mouse.move(0, 0)  # what the mouse rests on is lit too
    page.keyboard.press("Escape")
    assert lit(page, "before") == []
    assert page.locator("#panel").is_hidden()
    page.evaluate(f"document.querySelector('.before .n[data-n={swallowed[0]}]').dispatchEvent("
                  "new MouseEvent('click', { bubbles: true }))")
    assert lit(page, "after") == ["rms_norm"]


def test_a_refused_site_can_be_shown(page):
    page.locator(".go[data-lines]").first.click()
    assert "refused" in page.locator("#panel h4").inner_text()
    assert lit(page, "before")


def test_the_keys_go_through_a_drawing(page):
    page.check(".sides input[value=after]", force=True)
    page.locator('.after .n[tabindex="0"]').first.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    name = page.evaluate("document.activeElement.dataset.n")
    assert page.evaluate("document.querySelectorAll('svg')[1].querySelectorAll('[tabindex=\"0\"]').length") == 1
    page.keyboard.press("Enter")
    assert lit(page, "after") == [name]
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.dataset.n") == name


@pytest.mark.parametrize(("words", "kind", "there"), [
    ("layers.37.mlp.gate", "Program", "model.layers.*.mlp.gate"), ("gains more", "layer", "shares steps"),
    ("before: rsqrt", "layer", "rsqrt"), ("split_qkv_norm_rope", "Fusions", "taken")])
def test_search_finds_ops_weights_sites_and_reasons(page, words, kind, there):
    page.fill("#find", words)
    hits = page.locator("#found button")
    assert hits.count()
    texts = [text for text in hits.all_inner_texts() if text.startswith(kind)]
    assert any(there in text for text in texts)
    hits.filter(has_text=there).first.click()
    assert page.locator("#found").is_hidden()
    assert page.locator(".hit").count() == 1
    assert page.locator(".hit").is_visible()


def test_a_layer_is_bound_on_demand(page):
    page.locator(".runs summary", has_text="layers 3..91").click()
    page.locator("details[open] .pick input").fill("41")
    assert "model.layers.41.mlp.gate.weight" in page.locator("details[open] table").inner_text()
    page.locator("details[open] .pick input").fill("99")
    assert "model.layers.*.mlp.gate.weight" in page.locator("details[open] table").inner_text()


def test_every_button_and_field_has_a_name(page):
    nameless = page.evaluate("""[...document.querySelectorAll('button, input, [role], svg, summary, a')].filter((one) =>
        !(one.getAttribute('aria-label') || one.getAttribute('aria-labelledby') || one.textContent.trim()
          || one.closest('label') || (one.labels && one.labels.length))
        && !one.hidden && one.getAttribute('role') !== 'presentation').map((one) => one.outerHTML.slice(0, 80))""")
    assert nameless == []


def test_words_are_readable_on_their_ground(page):
    """Contrast of at least 4.5 for text colours of the page on its ground, as WCAG AA asks."""
    worst = page.evaluate("""(() => {
      const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
      const light = (colour) => {
        paint.fillStyle = colour; paint.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...paint.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
          .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const style = getComputedStyle(document.documentElement), ground = light(style.getPropertyValue('--ground'));
      return Math.min(...['--ink', '--faint', '--accent', '--good', '--bad', '--series-2', '--series-3', '--series-4']
        .map((name) => light(style.getPropertyValue(name)))
        .map((one) => (Math.max(one, ground) + 0.05) / (Math.min(one, ground) + 0.05)));
    })()""")
    assert worst >= 4.5
