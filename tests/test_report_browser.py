"""The report as a reader has it, in headless Chromium: sizes, schemes, numbers, keyboard."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from dreamprm.reporting import write_comparison, write_report
from dreamprm.run_directory.metrics import read_metrics
from tests.report_runs import HOSTILE, HOSTILE_NAMES, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = ("plain", "hostile", "many", "compared")
CONTRAST = """() => {
  const channel = v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || element.closest(".hidden, .skip, style")) continue;
    const style = getComputedStyle(element);
    const ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(rgb(ink)), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walker.currentNode.data.slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0])[0];
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium on this machine")
    # As root, as in a container, Chromium's sandbox does not start.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    plain = write_run(folder / "plain")
    hostile = write_run(folder / "hostile", HOSTILE_NAMES, text=HOSTILE)
    many = write_run(folder / "many", [f"domain-{i:03d}" for i in range(200)])
    return {run.name: write_report(run) for run in (plain, hostile, many)} | {
        "compared": write_comparison([plain, hostile, many], folder / "compared.html")
    }


def opened(browser: Browser, path: Path, width: int = 1280, **options: Any) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 800}, **options)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize("name", PAGES)
def test_nothing_errs_is_fetched_or_overflows(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: complaints.append(request.url))
    page.goto(pages[name].as_uri())
    assert [c for c in complaints if not c.startswith("data:image/")] == [pages[name].as_uri()]
    assert page.evaluate("window.hit") is None
    assert page.locator("script").count() == 0
    for unfolded in (False, True):
        if unfolded:
            page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        for width in (360, 768, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            beyond = page.evaluate(
                """w => [...document.querySelectorAll('main *')].filter(e =>
                !e.closest('.scroll, svg') && e.getBoundingClientRect().right > w + 1)
                .map(e => e.outerHTML.slice(0, 200))""",
                width,
            )
            assert beyond == []
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_light_and_dark_both_apply_and_can_be_read(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    page = opened(browser, pages[name])
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    papers = {}
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        papers[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ratio, text = page.evaluate(CONTRAST)
        assert ratio >= 4.5, (scheme, text)
    assert papers == {"light": "rgb(255, 255, 255)", "dark": "rgb(17, 20, 24)"}
    # On paper it is light, whatever the screen is, and nothing stays folded but plots' numbers.
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == papers["light"]
    page.close()


def test_the_numbers_are_those_of_the_run(browser: Browser, pages: dict[str, Path]) -> None:
    run = pages["plain"].parent
    page = opened(browser, pages["plain"])

    def table(key: str) -> dict[str, list[float | None]]:
        """Row header → exact numbers, from what stands in the page."""
        rows: dict[str, list[float | None]] = page.evaluate(
            """key => Object.fromEntries([...document.querySelectorAll(
            `table[data-key="${key}"] tbody tr`)].map(r => [
              r.querySelector('th').textContent,
              [...r.querySelectorAll('td')].map(c => {
                const n = c.querySelector('data'); return n ? Number(n.value) : null; })]))""",
            key,
        )
        return rows

    weights = json.loads((run / "weights.json").read_text())
    assert {name: row[1] for name, row in table("weights").items()} == weights
    rows = read_metrics(run)
    paths = {name: [row[f"weights/{name}"] for row in rows if "weights/clean" in row]
             for name in weights}  # fmt: skip
    shown = table("paths")
    order = sorted(weights, key=lambda name: -weights[name])
    assert [row[: len(order)] for step, row in shown.items() if step != "0"] == [
        [paths[name][i] for name in order] for i in range(len(shown) - 1)
    ]
    losses = {f"{row['step']:g}": row for row in rows if "prm/loss" in row}
    assert table("prm/loss") == {
        step: [row["prm/loss"], row["prm/unweighted_loss"]] for step, row in losses.items()
    }
    assert table("weighting/loss") == {
        step: [row["weighting/loss"]] for step, row in losses.items()
    }
    assert table("fidelity") == {
        step: [row["prm/hypergradient_cosine"]] for step, row in losses.items()
    }
    final = table("final")
    for name, value in final.items():
        step, last = next((r["step"], r[name]) for r in reversed(rows) if name in r)
        assert value == [step, last]
    assert len(final) == len({n for r in rows for n in r} - {"step"}) - len(weights)
    summary = json.loads((run / "summary.json").read_text())["runs"]
    assert table("summary")["best of N"] == [r["best_of_n"] for r in summary.values()]
    assert table("summary")["pass@N"] == [r["pass_at_n"] for r in summary.values()]
    assert float(page.locator(".tiles data").first.get_attribute("value") or "") == 0.51
    found = json.loads((run / "evaluation.json").read_text())
    curve = found["selection"][0]["models"]["model"]["rules"]["mean_logit"]
    assert table("selection")["best by mean logit"] == curve["accuracy"]
    assert table("steps")["AUC"] == [0.8]
    examples = [json.loads(line) for line in (run / "examples.jsonl").read_text().splitlines()]
    scores = page.evaluate(
        "[...document.querySelectorAll('.step .score data')].map(n => Number(n.value))"
    )
    assert scores == [s for e in examples for k in ("best", "worst") for s in e[k]["scores"]]
    page.close()


@pytest.mark.parametrize("name", ["plain", "compared"])
def test_the_keyboard_reaches_everything_in_order(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    page = opened(browser, pages[name], 360)
    page.evaluate(
        """() => [...document.querySelectorAll('a[href], summary, [tabindex="0"]')]
        .filter(e => e.matches('.skip') || e.checkVisibility())
        .forEach((e, i) => e.dataset.order = i)"""
    )
    count = page.locator("[data-order]").count()
    assert count > 10
    for i in range(count):
        page.keyboard.press("Tab")
        order, visible = page.evaluate(
            """() => { const e = document.activeElement, s = getComputedStyle(e),
            r = e.getBoundingClientRect();
            return [e.dataset.order, s.outlineStyle !== 'none' && r.left >= 0 && r.width > 0] }"""
        )
        assert (order, visible) == (str(i), True)
    # Enter on the skip link leads past the navigation, and on a summary opens it.
    page.reload()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    page.locator("summary").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector('details').open")
    page.close()


@pytest.mark.parametrize("name", PAGES)
def test_its_structure_can_be_heard(browser: Browser, pages: dict[str, Path], name: str) -> None:
    page = opened(browser, pages[name])
    levels = page.evaluate(
        "[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => Number(h.tagName[1]))"
    )
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for landmark in ("header", "nav[aria-label]", "main", "footer"):
        assert page.locator(f"body > {landmark}").count() == 1
    assert page.evaluate("document.documentElement.lang") == "en"
    for without in (
        "table:not(:has(caption))",
        "th:not([scope])",
        "img:not([alt])",
        "svg:not([role=img][aria-label])",
        "figure:not(:has(figcaption))",
        "section:not([aria-labelledby])",
    ):
        assert page.locator(without).count() == 0, without
    page.close()
