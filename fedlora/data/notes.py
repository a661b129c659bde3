"""What looks odd in rows and is no error: said before anything is trained on them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from datasets import Dataset

from fedlora.data.columns import INTEGER

SHOWN = 8  # groups of names that a note spells out
# What programs write where there is no value, as text; -1 is what GLUE has for no label.
NOTHING = {"nan", "NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "<NA>", "-1"}
PART = re.compile(
    r"(train(ing)?|test|val(id(ation)?)?|eval(uation)?)([-_. ].*)?|dev([-_. ]?set)?", re.IGNORECASE
)


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


def nothing(what: str, counts: Mapping[str, int]) -> list[str]:
    """A note on values that stand for none. Arguments as for `alike`."""
    told = [f"{name!r} ({counts[name]:,} rows)" for name in sorted(NOTHING & counts.keys())]
    return [f"{what} that often stand for a missing one: {', '.join(told)}"] if told else []


def mixed(counts: Mapping[str, int]) -> list[str]:
    """A note on labels of which some are numbers: two files may write the same ones in two ways."""
    numbers = [name for name in counts if INTEGER.fullmatch(name)]
    words = [name for name in counts if name not in numbers]
    if not numbers or not words:
        return []
    told = [", ".join(f"{n!r} ({counts[n]:,} rows)" for n in some[:3]) for some in (numbers, words)]
    return [f"labels are numbers, as {told[0]}, and words, as {told[1]}: all count as different"]


def parts(clients: Mapping[str, int]) -> list[str]:
    """A note on clients with the name of a part of a data set, as a folder may have it beside the
    files of clients. `clients` has the rows of each."""
    told = [f"{name!r} ({count:,} rows)" for name, count in clients.items() if PART.fullmatch(name)]
    if not told:
        return []
    more = ["…"] if len(told) > SHOWN else []
    return [
        f"clients with a name for a part of a data set: {', '.join(told[:SHOWN] + more)}. All "
        "files but test and public are clients', and are trained on"
    ]


def shared(owned: Mapping[str, Dataset]) -> list[str]:
    """A note on clients of whose rows half or more are others' too. `owned` has each one's."""
    rows = {client: [content for content, _ in _hashed(table)] for client, table in owned.items()}
    owners = Counter(content for own in rows.values() for content in set(own))
    told = []
    for client, own in rows.items():
        count = sum(owners[content] > 1 for content in own)
        if own and 2 * count >= len(own):
            told.append(f"{client!r} ({count:,} of {len(own):,})")
    more = ["…"] if len(told) > SHOWN else []
    listed = ", ".join(told[:SHOWN] + more)
    return [f"clients whose rows other clients have too: {listed}"] if told else []


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
