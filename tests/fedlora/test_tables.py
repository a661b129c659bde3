"""A comparison's tables say the same in every format, and no name is markup."""

import csv
import io
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from fedlora import comparison, report, tables
from fedlora.tables import Cells
from tests.fedlora.test_comparison import result, results

TWO = results({"fedit": [0.8, 0.9], "ffa": [0.75, 0.87]})
OWN = "my_mod:Damped_1"


def printed(cells: Cells) -> list[list[str]]:
    """The console's lines, cell by cell."""
    out = io.StringIO()
    report.show(tables.console(cells), Console(file=out, width=200))
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    return [[c.strip() for c in line.split("   ") if c.strip()] for line in lines]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_line_a_method_with_deviations() -> None:
    """Mean ± deviation where there are seeds; bytes that are the same in each stand alone."""
    header, _, fedit, ffa = printed(tables.cells(TWO)[0])
    assert header == ["method", "score", "personalised", "parameters", "up", "down", "seconds"]
    assert fedit == ["fedit", "0.850 ± 0.071", "0.500 ± 0.000", "100", "1 kB", "2 kB", "3.0 ± 0.0"]
    assert ffa[:2] == ["ffa", "0.810 ± 0.085"]
    uneven = [result("fedit", seed, None, bytes_up=1000 + 200 * seed) for seed in (0, 1)]
    assert printed(tables.cells(uneven)[0])[2][1:5:3] == ["–", "1.1 kB ± 141 B"]


def test_one_seed_is_shown_as_it_is() -> None:
    """One table, without deviations."""
    (only,) = tables.cells([result("fedit", 4, 0.8), result("[red]local", 4, None)])
    assert printed(only)[2:] == [
        ["fedit", "0.800", "0.500", "100", "1 kB", "2 kB", "3.0"],
        ["[red]local", "–", "0.500", "100", "1 kB", "2 kB", "3.0"],
    ]


def test_columns_that_only_some_comparisons_have() -> None:
    """Losses, perplexity and ε where one method has them; ε is rounded up."""
    spent = [result("a", 0, 0.5, epsilon=2.991, test_loss=0.5, perplexity=1.6487)]
    (found,) = tables.cells([*spent, result("b", 0, 0.5)])
    assert found[0][3:6] == ["test loss", "perplexity", "ε"]
    assert [line[3:6] for line in found[1:]] == [["0.500", "1.65", "3.00"], ["–", "–", "–"]]


def test_the_table_of_differences() -> None:
    """Against the first method, signed; a p below a thousandth is not called zero."""
    runs = results({"a": [0.1, 0.2, 0.3], "b": [0.2, 0.3001, 0.4], "c": [0.1, 0.1, 0.2]})
    header, b, c = tables.cells(runs)[1]
    assert header == ["method", "difference of score", "95% interval", "p", "p (Holm)"]
    assert b == ["b", "+0.100", "+0.100 to +0.100", "<0.001", "<0.001"]
    assert c[:2] == ["c", "−0.067"] and float(c[3]) == float(c[4])


def test_the_files_hold_what_the_statistics_say(tmp_path: Path) -> None:
    """comparison.csv a line a method, unrounded; runs.csv a line a run, every field."""
    tables.write(TWO, tmp_path)
    fedit, ffa = read(tmp_path / "comparison.csv")
    (difference,) = comparison.differences(TWO)
    spread = comparison.summaries(TWO)[1].measures["score"]
    assert spread and float(ffa["score"]) == spread.mean
    assert float(ffa["score_deviation"]) == spread.deviation
    assert (ffa["reference"], float(ffa["p_holm"])) == ("fedit", difference.adjusted)
    assert float(ffa["difference_low"]) == difference.low
    assert (fedit["seeds"], fedit["p"], fedit["bytes_up"]) == ("2", "", "1000")
    written = [{k: "" if v is None else str(v) for k, v in asdict(r).items()} for r in TWO]
    assert read(tmp_path / "runs.csv") == written
    names = {"comparison.csv", "runs.csv", "comparison.md", "comparison.tex"}
    assert {p.name for p in tmp_path.iterdir()} == names
    tables.write([], tmp_path)
    assert read(tmp_path / "runs.csv") == []


def test_a_name_is_no_markup(tmp_path: Path) -> None:
    """In Markdown and in LaTeX every character of a method's name is shown as it is."""
    tables.write(results({OWN: [0.8, 0.9], "a|b*&%$#{}~^\\": [0.7, 0.7]}), tmp_path)
    shown = (tmp_path / "comparison.md").read_text("utf-8")
    assert r"| my\_mod:Damped\_1 | 0.850 ± 0.071 |" in shown
    assert r"| a\|b\*&%\$\#{}\~^\\ |" in shown
    shown = (tmp_path / "comparison.tex").read_text("utf-8")
    assert r"my\_mod:Damped\_1 & 0.850 $\pm$ 0.071 &" in shown
    assert r"a|b*\&\%\$\#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{} &" in shown


def test_latex_is_a_plain_table(tmp_path: Path) -> None:
    """One column specification, as many cells in each line, remarks as comments, and no character
    but ASCII outside of them: it needs no package and no engine of its own."""
    spent = [result("a", s, None, epsilon=2.0) for s in (0, 1)]
    tables.write([*spent, result("b", 0, 0.5), result("b", 1, 0.1)], tmp_path)
    lines = (tmp_path / "comparison.tex").read_text("utf-8").splitlines()
    code = [line for line in lines if not line.startswith("%")]
    assert all(line.isascii() for line in code)
    assert code[0] == r"\begin{tabular}{lrrrrrrr}"
    rows = [line for line in code[: code.index(r"\end{tabular}")] if line.endswith(r"\\")]
    assert [line.count(" & ") for line in rows] == [7, 7, 7]
    assert "$\\varepsilon$" in rows[0] and " -- & " in rows[1]
