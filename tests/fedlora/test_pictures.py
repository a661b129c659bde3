"""Pictures: what is drawn of given rows."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedlora import pictures
from tests.fedlora.rows import FOUR, ROWS, START, client_row, private, round_row

Row = dict[str, Any]


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 1000


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[Row]], Figure]:
    """The figure that `curves` makes of rows."""

    def draw(rows: list[Row]) -> Figure:
        pictures.curves(rows, tmp_path / "curves.png")
        return figures[-1]

    figures: list[Figure] = []
    save = pictures._save
    monkeypatch.setattr(pictures, "_save", lambda f, path: (figures.append(f), save(f, path)))
    return draw


def lines(axes: Axes, thick: bool) -> list[list[float]]:
    """The heights of the thick or of the thin lines."""
    return [list(x.get_ydata()) for x in axes.lines if (x.get_linewidth() > 1) == thick]


def names(axes: Axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("rows", [ROWS, ROWS[:1], [], [client_row(1, str(i)) for i in range(20)]])
def test_curves_draws_whatever_is_known(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """A whole run, one that just began, nulls and many clients all give a picture."""
    pictures.curves(rows, tmp_path / "curves.png")
    assert is_png(tmp_path / "curves.png")
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_the_second_panel_is_the_loss(drawn: Callable[[list[Row]], Figure]) -> None:
    """A run that is not private shows its loss by round."""
    panel = drawn(ROWS).axes[1]
    assert panel.get_title(loc="left") == "training loss"
    assert lines(panel, thick=True) == [[0.25, 0.25]] and not names(panel)


def test_a_private_run_shows_what_each_client_spent(drawn: Callable[[list[Row]], Figure]) -> None:
    """Each client's own ε as a thin line with its name, the largest of a round as a thick one."""
    panel = drawn(private(FOUR)).axes[1]
    assert panel.get_title(loc="left") == "ε spent by round (thin: each client's own)"
    assert lines(panel, thick=True) == [[0.0, 1.9, 2.3, 2.6, 2.8, 2.99]]
    assert lines(panel, thick=False) == list(FOUR.values())
    assert names(panel) == {*FOUR, "largest"}


def test_many_clients_spend_without_names(drawn: Callable[[list[Row]], Figure]) -> None:
    """More clients than colours: pale lines, and only the largest is named."""
    panel = drawn(private({f"c{i}": [1.0 + i, 2.0 + i] for i in range(12)})).axes[1]
    assert len(lines(panel, thick=False)) == 12 and names(panel) == {"largest"}


def test_a_server_that_adds_the_noise_has_one_line(drawn: Callable[[list[Row]], Figure]) -> None:
    """Central privacy: only rounds have an ε; there is nobody to be the largest of."""
    rows = [x if x["kind"] == "round" else client_row(x["round"], "a") for x in private(FOUR)]
    panel = drawn(rows).axes[1]
    assert panel.get_title(loc="left") == "ε spent by round"
    assert lines(panel, thick=True) == [[0.0, 1.9, 2.3, 2.6, 2.8, 2.99]]
    assert not any(lines(panel, thick=False)) and not names(panel)


def test_an_unbounded_epsilon_is_not_drawn(drawn: Callable[[list[Row]], Figure]) -> None:
    """Nulls leave gaps; the panel stays that of ε."""
    panel = drawn([row | {"epsilon": None} for row in private(FOUR)]).axes[1]
    assert "ε" in panel.get_title(loc="left") and lines(panel, thick=True) == [[]]


@pytest.mark.parametrize("spending", [FOUR, dict.fromkeys(FOUR, FOUR["films"])])
def test_names_overlap_nothing(
    drawn: Callable[[list[Row]], Figure], spending: dict[str, list[float]]
) -> None:
    """Names lie in the picture, beside their own panel and its lines, and clear of each other and
    of the other panel, also where all lines end at one height."""
    figure = drawn(private(spending))
    panels = [axes.get_window_extent() for axes in figure.axes]
    boxes = [text.get_window_extent() for axes in figure.axes for text in axes.texts]
    assert len(boxes) == 6 + 5
    assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
    assert not any(box.overlaps(panel) for box in boxes for panel in panels)
    assert all(figure.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_names_are_no_formulas(drawn: Callable[[list[Row]], Figure]) -> None:
    """A client's name is drawn as it is written."""
    assert r"$\frac$" in names(drawn([START, client_row(1, r"$\frac$")]).axes[0])


def test_comparison_picture_draws_methods_and_baselines(tmp_path: Path) -> None:
    """Methods that send, baselines that do not, and one without a score; one seed and two."""
    runs = {"fedex": [ROWS, ROWS], "local": [[START]] * 2, "mute": [[round_row(1, score=None)]]}
    for name, chosen in {"all": runs, "baseline": {"local": [[START]]}, "none": {}}.items():
        pictures.comparison_picture(chosen, tmp_path / f"{name}.png")
        assert is_png(tmp_path / f"{name}.png")


def test_cost_adds_up_both_directions() -> None:
    """The abscissa is megabytes up and down until then, rounds without a score included."""
    rounds = [START, round_row(1, score=None), round_row(2, score=0.9)]
    assert list(pictures._cost(rounds)) == [
        (0, 0.8461, 0.0),
        (2, 0.9, pytest.approx(2 * 1.230999)),
    ]


def test_seeds_are_a_mean_in_a_band() -> None:
    """Means of score and megabytes, the least and the largest score; a round without a score in
    some seed is left out, its bytes are not."""
    one = [round_row(0, score=0.5, bytes_up=0, bytes_down=0), round_row(1, score=None)]
    two = [round_row(0, score=0.7, bytes_up=0, bytes_down=0), round_row(1, score=0.9)]
    late = {"bytes_up": 1_000_000, "bytes_down": 0}
    one, two = [*one, round_row(2, score=0.6, **late)], [*two, round_row(2, score=0.9, **late)]
    assert pictures._band([one, two]) == [
        (0, pytest.approx(0.6), 0.0, 0.5, 0.7),
        (2, pytest.approx(0.75), pytest.approx(2.230999), 0.6, 0.9),
    ]


@given(st.lists(st.floats(0, 1), max_size=9).map(sorted))
def test_labels_keep_apart_and_inside(heights: list[float]) -> None:
    """Labels never overlap or leave the panel, and stay put where they already fit."""
    moved = pictures.spread(heights, 0.1, 0.0, 1.0)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(moved))
    assert all(-1e-9 <= y <= 1 + 1e-9 for y in moved)
    if all(b - a >= 0.1 for a, b in pairwise(heights)):
        assert moved == pytest.approx(heights)
