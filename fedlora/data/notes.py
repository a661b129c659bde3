"""What looks odd in rows and is no error: said before anything is trained on them."""

import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from datasets import Dataset

from fedlora.data.columns import INTEGER

SHOWN = 8  # groups of names that a note spells out


def alike(what: str, counts: Mapping[str, int]) -> list[str]:
    """A note on names that differ only as spellings of one name do: in case, spaces, letters that
    nobody sees, or zeros before a number.

    Args:
        what: what the names are, in the plural.
        counts: how many rows have each name.
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(counts, key=lambda name: (-counts[name], name)):
        groups.setdefault(folded(name), []).append(name)
    told = [
        " / ".join(f"{name!r} ({counts[name]:,} rows)" for name in names)
        for names in groups.values()
        if len(names) > 1
    ]
    if not told:
        return []
    more = ["…"] if len(told) > SHOWN else []
    return [f"{what} that look alike and count as different: {'; '.join(told[:SHOWN] + more)}"]


def folded(name: str) -> str:
    """The same for all spellings of a name."""
    seen = "".join(
        c for c in unicodedata.normalize("NFKC", name) if unicodedata.category(c) != "Cf"
    )
    words = " ".join(seen.casefold().split())
    return words.lstrip("+0") or "0" if INTEGER.fullmatch(words) else words


def repeated(trained: Dataset, test: Dataset) -> list[str]:
    """Notes on texts that have two labels, and on test rows that are training rows too."""
    rows: Counter[int] = Counter()
    labels: dict[int, int] = {}
    torn = set()
    for content, label in _hashed(trained):
        rows[content] += 1
        if labels.setdefault(content, label) != label:
            torn.add(content)
    known = sum(content in rows for content, _ in _hashed(test))
    said = []
    if torn and "text" in trained.column_names:
        count = sum(rows[content] for content in torn)
        said.append(f"{len(torn):,} texts have more than one label, in {count:,} training rows")
    if known:
        said.append(
            f"{known:,} of {len(test):,} test rows are training rows too: their score says little "
            "about new ones"
        )
    return said


def unlearnt(labels: Sequence[str], trained: Dataset, test: Dataset) -> list[str]:
    """A note on labels of test rows that no training row has: nobody can get them right."""
    known = set(trained["label"][:])
    counts = Counter(labels[i] for i in test["label"][:] if labels and i not in known)
    if not counts:
        return []
    told = ", ".join(f"{name!r} ({count:,} rows)" for name, count in counts.most_common(SHOWN))
    return [f"labels of test rows that no training row has: {told}"]


def _hashed(rows: Dataset) -> Iterator[tuple[int, int]]:
    """(a number for the text or the conversation, the label) of each row."""
    name = "text" if "text" in rows.column_names else "messages"
    for some in rows.iter(1024):
        for content, label in zip(some[name], some["label"], strict=True):
            yield hash(str(content)), label
