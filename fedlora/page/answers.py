"""What models answered, before training and after it, side by side."""

from collections.abc import Sequence
from dataclasses import dataclass

from fedlora.page.collect import Run
from fedlora.page.series import Series

FEW = 5  # prompts that are shown


@dataclass(frozen=True)
class Answer:
    """Whose (nobody's in particular before training, where all say the same), and after which
    round."""

    label: str
    style: str
    round: int
    text: str


@dataclass(frozen=True)
class Question:
    prompt: str
    reference: str
    answers: Sequence[Answer]


def of(series: Sequence[Series]) -> list[Question]:
    """The first few prompts that were answered; of each series the run with the first seed."""
    asked = [(s, run) for s in series if (run := _answered(s))]
    prompts = dict.fromkeys((r["row"], r["prompt"]) for _, run in asked for r in run.answers)
    return [_question(asked, row, prompt) for row, prompt in list(prompts)[:FEW]]


def _answered(series: Series) -> Run | None:
    return next((run for run in series.runs if run.answers), None)


def _question(asked: Sequence[tuple[Series, Run]], row: int, prompt: str) -> Question:
    before: dict[str, list[Answer]] = {}
    after, reference = [], ""
    for series, run in asked:
        own = [r for r in run.answers if (r["row"], r["prompt"]) == (row, prompt)]
        for r in own:
            reference = reference or str(r.get("reference") or "")
            answer = Answer(series.label, series.style, r["round"], str(r["answer"]))
            if r["round"] == 0:
                before.setdefault(answer.text, []).append(answer)
        later = max((r["round"] for r in own), default=0)
        after += [
            Answer(series.label, series.style, later, str(r["answer"]))
            for r in own
            if 0 < r["round"] == later
        ]
    shared = len(before) == 1 and len(asked) > 1
    first = [
        Answer("", "", 0, text)
        if shared
        else Answer(", ".join(a.label for a in alike), alike[0].style, 0, text)
        for text, alike in before.items()
    ]
    return Question(str(prompt), reference, [*first, *after])
