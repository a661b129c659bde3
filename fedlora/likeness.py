"""How like answers are to references: exact match, ROUGE-L, F1, all of torchmetrics.

F1 and exact match are those of SQuAD: over words, without case, punctuation and articles.
ROUGE-L is the F-measure of the longest common subsequence of words (Lin, 2004), without case.
"""

import re
from collections.abc import Sequence
from typing import Any

NAMES = ("exact_match", "rouge_l", "f1")
WORDS = re.compile(r"[^\W_]+")  # of any script, where the metric's own know ASCII's alone


def likeness(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The means over one or more rows, by the names `NAMES`; fractions."""
    # Here, since the library takes seconds to import and most runs say nothing.
    from torchmetrics.functional.text import rouge_score, squad

    said: Any = [{"id": str(i), "prediction_text": text} for i, text in enumerate(answers)]
    true: Any = [
        {"id": str(i), "answers": {"text": [text], "answer_start": [0]}}
        for i, text in enumerate(references)
    ]
    matched = squad(said, true)
    rouge = rouge_score(
        list(answers),
        list(references),
        rouge_keys="rougeL",
        normalizer=str.lower,
        tokenizer=WORDS.findall,
    )
    found = (matched["exact_match"] / 100, rouge["rougeL_fmeasure"], matched["f1"] / 100)
    return dict(zip(NAMES, map(float, found), strict=True))
