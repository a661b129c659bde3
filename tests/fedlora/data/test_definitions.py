"""The bundled definitions, and how they are made."""

import json
import re
from collections import Counter

import pytest

from fedlora.config import Data
from fedlora.data import sources
from fedlora.data.definitions import make

FOLDER = sources.BUNDLED["definitions"]
ASKED = re.compile(r'Define the word "([a-z]{3,12})"\.')


@pytest.fixture(scope="module")
def bundled():
    return {
        side: [json.loads(line) for line in (FOLDER / f"{side}.jsonl").open(encoding="ascii")]
        for side in ("train", "test")
    }


def test_found_by_name():
    """data.name = "definitions" are these rows, all of them, with their own for testing."""
    raw = sources.tables(Data(name="definitions"))
    (train,) = raw.rows.values()
    assert raw.test is not None
    assert [*train.columns] == [*raw.test.columns] == ["instruction", "output", "domain"]
    assert (len(train), len(raw.test)) == (2102, 256)


def test_six_classes_of_uneven_size(bundled):
    """The largest has eight times the rows of the smallest, and each is tested."""
    for side, least in {"train": 100, "test": 9}.items():
        sizes = Counter(row["domain"] for row in bundled[side])
        assert set(sizes) == set(make.CLASSES.values())
        assert min(sizes.values()) >= least
        assert max(sizes.values()) > 8 * min(sizes.values())
    assert sum((FOLDER / f"{side}.jsonl").stat().st_size for side in bundled) < 400_000


def test_no_word_and_no_definition_twice(bundled):
    """In either file: nothing that is tested was trained on."""
    rows = [row for side in bundled.values() for row in side]
    for column in ("instruction", "output"):
        assert max(Counter(row[column] for row in rows).values()) == 1
    bags = Counter(" ".join(sorted(set(words(row)) - {"a", "an", "the"})) for row in rows)
    assert max(bags.values()) == 1
    assert 0.09 < len(bundled["test"]) / len(rows) < 0.12


def test_fit_to_be_shown(bundled):
    """One clean clause that neither uses the word itself nor needs brackets, examples or Latin."""
    for row in (row for side in bundled.values() for row in side):
        asked = ASKED.fullmatch(row["instruction"])
        assert asked is not None
        text = row["output"]
        assert asked[1] not in text
        assert re.fullmatch("[A-Za-z',-]+( [A-Za-z',-]+)+", text) and 4 <= len(text.split()) < 16
        assert not re.search(r"\b(genus|slur|sexual|offensive|derogatory|contempt)", text)


def words(row):
    return re.findall("[a-z]+", row["output"].lower())


NOUNS = [
    ["05", ["pup", "whelp"], 'young of a dog (or wolf); "the pup barked at the whelp"'],
    ["05", ["Pluto"], 'a cartoon character of great fame; "Pluto barked"'],  # a name
    ["05", ["hippo"], "large animal of the genus Hippopotamus"],
    ["18", ["lout"], 'a person who is rude; (offensive) a lout; "lout"'],
    ["18", ["silly"], 'a word used for children; "the silly pup was silly"'],  # an adjective too
    ["18", ["adder"], 'a person who adds numbers; "adder"'],  # of two senses, neither was tagged
    ["14", ["pack"], 'a group of hunting animals; "the pack ran"'],  # not one of the classes
    ["05", ["whale"], "a very large sea mammal"],  # found in no other gloss
    ["20", ["maple"], 'the tree with a lobed leaf; "maple"'],
    ["20", ["acer"], 'a tree with the lobed leaf; "acer acer"'],  # the same words
]
ADJECTIVES = [
    ["00", ["silly"], "like a pup, pluto, maple or an adder or a lout, a hippo or an acer"]
]
MORE = [
    ["00", ["bark"], 'speak as a pluto, a pack, an acer, a silly one, a hippo; "the pup barked"']
]


def test_made_from_the_files_of_wordnet(tmp_path):
    """Names, adjectives, rare words, other classes, senses of no order, Latin and slurs are left
    out; of synonyms and of definitions of the same words the commoner stays; a licence is skipped.
    """
    dictionary = {"noun": NOUNS, "adj": ADJECTIVES, "verb": MORE, "adv": []}
    for speech, synonyms in dictionary.items():
        write(tmp_path, speech, synonyms)
    make.main(tmp_path, tmp_path)
    made = [
        json.loads(line)
        for side in ("train", "test")
        for line in (tmp_path / f"{side}.jsonl").read_text().splitlines()
    ]
    assert sorted(made, key=lambda row: row["domain"]) == [
        {"instruction": 'Define the word "pup".', "output": "young of a dog", "domain": "animal"},
        {
            "instruction": 'Define the word "acer".',
            "output": "a tree with the lobed leaf",
            "domain": "plant",
        },
    ]


def write(folder, speech, synonyms):
    """WordNet's two files of a part of speech, licence and all."""
    data, index = ["  1 A licence | of WordNet  "], ["  1 A licence  "]
    for offset, (kind, names, gloss) in enumerate(synonyms):
        ids = " ".join(f"{name} 0" for name in names)
        data.append(
            f"{offset:08} {kind} n {len(names):02x} {ids} 001 @ 00000009 n 0000 | {gloss}  "
        )
        senses = 2 if names == ["adder"] else 1
        later = " 00000000" * (senses - 1)
        index += [f"{n.lower()} n {senses} 2 @ ~ {senses} 0 {offset:08}{later}  " for n in names]
    (folder / f"data.{speech}").write_text("\n".join(data) + "\n")
    (folder / f"index.{speech}").write_text("\n".join(index) + "\n")
