"""The page: what it says, that nothing in it is taken for HTML, and that it asks for nothing."""

import re
from html.parser import HTMLParser

import pytest

from fedlora.errors import UserError
from fedlora.page.collect import read
from fedlora.page.html import page, write
from tests.fedlora.page.made import answered, directory, made, scored, told
from tests.fedlora.rows import FOUR, client_row, private, round_row

EVIL = '<script>alert(1)</script><img src="http://evil.example/x.png" onerror=alert(2)>'


class Seen(HTMLParser):
    """The tags and attributes of a page, and its texts; apart from them what is in <style>."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text, self.styles = [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attributes]

    def handle_data(self, data):
        if self.tags[-1:] == ["style"]:
            self.styles += data
        else:
            self.text += f"{data} "


def compared(folder):
    """Three methods with two seeds each, one of them private, and a baseline."""
    rows = {
        "fedit": scored(0.5, 0.61, 0.72, test_loss=0.4),
        "fedsb": private(FOUR),
        "local": scored(0.5, 0.6, 0.62),
    }
    clients = told({"a": [0.5, 0.6], "b": [0.7, 0.9], "c": [0.1, 0.95]})
    return [
        made(folder, f"{m}-{seed}", [*r, *clients], strategy__name=m, run__seed=seed)
        for m, r in rows.items()
        for seed in (0, 1)
    ]


def words(html):
    return re.sub(r"\s+", " ", Seen(html).text)


def test_the_page_of_a_comparison(tmp_path):
    """Numbers of every series, each panel for which there are values, differences, runs and the
    environment."""
    html = page(compared(tmp_path), "three")
    said = words(html)
    assert "fedit 0.720 ± 0.000 0.500 ± 0.000 0.4000 ± 0.0000 – 2 MB 4 MB" in said
    for id in ("score", "loss", "bytes", "privacy", "clients-0"):
        assert f'id="chart-{id}"' in html
    assert "Held-out loss by round" in said and "strategy.name fedit fedsb local" in said
    assert "fedit-1 fedit 1 2 of 5 3 0 0" in said and "Linux" in said


def test_a_single_run_has_no_bands(tmp_path):
    """Nor anything about seeds, privacy or answers, and its training loss."""
    html = page([made(tmp_path, "mine", scored(0.5, 0.6))], "mine")
    said = words(html)
    assert "±" not in said and "ε" not in said and "Answers" not in said and "bands" not in said
    assert 'class="band' not in html and "Training loss by round" in said


def test_a_language_model_has_a_perplexity(tmp_path):
    """exp of the loss a token; where its answers were scored, those scores too."""
    run = made(tmp_path, "mine", scored(0.5, 0.6, test_loss=2.0, rouge_l=0.31))
    run = type(run)(**{**vars(run), "config": {**run.config, "model.task": "instruction"}})
    said = words(page([run], "mine"))
    assert "token accuracy" in said and "perplexity" in said and "7.39" in said
    assert "ROUGE-L" in said and "0.310" in said and "nats a token" in said


def test_nothing_that_was_read_is_html(tmp_path):
    """Names of clients, reasons, prompts and answers are shown as they were written."""
    rows = [*scored(0.5), round_row(1, failed={EVIL: EVIL}), client_row(1, EVIL)]
    rows += [client_row(1, f"{EVIL}2", score=0.1)]
    found = directory(tmp_path, "mine", rows)
    row = {"row": 0, "prompt": f"P {EVIL}", "reference": f"R {EVIL}", "answer": f"A {EVIL}"}
    answered(found, [{"round": n, **row} for n in (0, 1)])
    seen = Seen(page([read(found)], EVIL))
    assert "script" not in seen.tags and "img" not in seen.tags
    assert not [a for _, a, _ in seen.attributes if a.startswith("on")]
    for shown in (f"P {EVIL}", f"R {EVIL}", f"A {EVIL}", EVIL):
        assert shown in seen.text


def test_the_page_refers_to_nothing(tmp_path):
    """No element that loads, no address in an attribute or a style, and a policy that would keep a
    browser from asking for anything."""
    runs = compared(tmp_path)
    seen = Seen(page(runs, "three"))
    assert not {"script", "img", "iframe", "object", "embed", "base", "form"} & set(seen.tags)
    assert not [v for _, a, v in seen.attributes if a in ("src", "srcset", "action", "xlink:href")]
    assert [v for _, a, v in seen.attributes if a == "href"] == ["data:,"]
    assert not re.search(r"url\(|@import|@font-face", seen.styles)
    assert "://" not in page(runs, "three")
    (policy,) = [v for t, a, v in seen.attributes if a == "content" and "default-src" in (v or "")]
    assert policy.startswith("default-src 'none';")


def test_a_drawing_says_what_it_shows(tmp_path):
    """Each has a name for those who do not see it; ids are unlike each other."""
    html = page(compared(tmp_path), "three")
    drawn = re.findall(r'<svg role="img" aria-label="([^"]+)"', html)
    assert (
        drawn[0] == "Score by round: fedit ends at 0.720; fedsb ends at 0.846; local ends at 0.620."
    )
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids))


def test_answers_stand_side_by_side(tmp_path):
    """Before training once where all say the same, after it each method's own."""
    runs = []
    for method in ("fedit", "fedsb"):
        run = directory(tmp_path, method, scored(0.5, 0.6), {"strategy.name": method})
        row = {"row": 7, "prompt": "Why?", "reference": "Because."}
        answered(run, [{"round": 0, "answer": "No.", **row}, {"round": 5, "answer": method, **row}])
        runs.append(read(run))
    said = words(page(runs, "two"))
    assert said.count("Why?") == 1 and said.count("No.") == 1
    assert "every method before No." in said
    assert "fedit after round 5 fedit" in said and "fedsb after round 5 fedsb" in said


def test_a_run_without_a_round_is_left_out_and_said(tmp_path):
    """It may be going on; where there is no other there is no page."""
    begun = made(tmp_path, "begun", [])
    html = page([begun, made(tmp_path, "mine", scored(0.5))], "two")
    assert "Left out, as no round of theirs has finished: begun." in words(html)
    with pytest.raises(UserError, match=r"no round has finished yet in .*begun"):
        page([begun], "begun")


def test_the_same_runs_give_the_same_page(tmp_path):
    """To the byte."""
    runs = compared(tmp_path)
    assert page(runs, "three") == page(runs, "three")


def test_a_page_is_written_whole_or_not(tmp_path):
    """Into a folder that exists."""
    write("<p>", tmp_path / "report.html")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    for path in (tmp_path, tmp_path / "nowhere" / "report.html"):
        with pytest.raises(UserError, match="cannot be written: give --output a file"):
            write("<p>", path)
