"""The report in a real browser: wide and narrow, light and dark, and on paper."""

import base64
import re

import pytest

from fedlora.page.collect import read
from fedlora.page.html import page
from tests.fedlora.page import browser
from tests.fedlora.page.made import answered, directory, scored, told
from tests.fedlora.rows import FOUR, private

LONG = "a client whose name is long and has_no_place_where_it_could_be_broken_into_lines" * 2


@pytest.fixture
def report(tmp_path):
    """A comparison with seeds, privacy, answers and long names."""
    runs = []
    for i, method in enumerate(("fedit", "fedex", "fedsb", "ffa", "local")):
        for seed in (0, 1):
            scores = scored(0.5, 0.6 + i / 40, 0.7 + (i + seed) / 50, test_loss=0.5)
            rows = private(FOUR) if method == "fedsb" else scores
            rows = [*rows, *told({"a": [0.2, 0.3], LONG: [0.5, 0.6 + i / 50], "c": [0.9, 0.95]})]
            given = {"strategy.name": method, "run.seed": seed}
            run = directory(tmp_path / "runs", f"{method}-{seed}", rows, given)
            row = {"row": 0, "prompt": f"Why? {LONG}", "reference": "<b>", "answer": LONG}
            answered(run, [{"round": n, **row} for n in (0, 2)])
            runs.append(read(run))
    path = tmp_path / "report.html"
    path.write_text(page(runs, LONG), "utf-8")
    return path


def luminance(colour):
    """WCAG 2's relative luminance of an opaque rgb(…)."""
    assert colour.startswith("rgb("), colour
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.skipif(
    not (browser.BROWSER and browser.DRIVER), reason="there is no chromium or no chromedriver"
)
def test_the_report_in_a_browser(report, tmp_path):
    """It asks for nothing and complains of nothing; on a phone nothing but tables is wider than
    the screen; every text stands out from its ground, in light and in dark; no label lies over
    another; and it prints."""
    grounds = {}
    with browser.opened(report, tmp_path / "profile") as seen:
        for width in (1280, 360):
            for scheme in ("light", "dark"):
                seen.emulate(width, scheme)
                assert seen.ask("return document.documentElement.scrollWidth") <= width
                assert seen.ask(browser.OVERLAPS) == []
                shown = seen.ask(browser.COLOURS)
                assert len(shown) > 100
                assert [x for x in shown if contrast(*x[1:]) < 4.5] == []
                grounds[scheme] = shown[0][2]
        assert luminance(grounds["light"]) > 0.9 and luminance(grounds["dark"]) < 0.05
        pdf = base64.b64decode(seen.pdf())
        assert pdf.startswith(b"%PDF-") and len(re.findall(rb"/Type\s*/Page\b", pdf)) >= 3
        assert seen.requests() == [report.as_uri()]
        assert seen.ask("return performance.getEntriesByType('resource').length") == 0
        assert seen.complaints() == []
