"""The bundled sentiment data, and how it is made."""

import io
import json
import tarfile
from collections import Counter

import pytest

from fedlora.config import Data
from fedlora.data import load
from fedlora.data.sentiment import make
from fedlora.data.sources import BUNDLED

FOLDER = BUNDLED["sentiment"]


@pytest.fixture(scope="module")
def bundled():
    return {
        side: [json.loads(line) for line in (FOLDER / f"{side}.jsonl").open(encoding="utf-8")]
        for side in ("train", "test")
    }


def test_the_default_federation():
    """With no configuration there is one client a domain, with label shares of its own."""
    federation = load(Data(), 0)
    assert federation.clients == ["editorials", "films", "products", "tweets"]
    assert federation.labels == ["negative", "positive"]
    assert len(federation.public) == 128
    shares = {
        c: sum(federation.train(c)["label"]) / len(federation.trained[c])
        for c in federation.clients
    }
    assert shares["editorials"] < 0.45 < shares["films"] < 0.55 < shares["products"]
    assert shares["products"] < shares["tweets"]


def test_nearly_even_and_without_leaks(bundled):
    """The majority label of the test rows is near .53, and no text is on both sides."""
    labels = Counter(row["label"] for row in bundled["test"])
    assert max(labels.values()) / labels.total() == pytest.approx(0.53, abs=0.01)
    texts = Counter(row["text"].casefold() for side in bundled.values() for row in side)
    assert max(texts.values()) == 1
    assert not any("&amp;" in text or "&#" in text for text in texts)
    share = len(bundled["test"]) / texts.total()
    assert 0.09 < share < 0.12


def test_made_from_the_source_distribution(tmp_path):
    """Near-neutral and repeated texts are dropped, entities decoded, and the sentences of one
    document stay on one side."""
    content = {stem: b"1\t0.1\tneutral\r\n" for stem in make.FILES.values()}
    reviews = [
        f"{d}_{s}\t{1.5 - 3 * (s % 2)}\tdocument {d} &amp; {s}" for d in range(60) for s in (1, 2)
    ]
    content["amazonReviewSnippets"] = "\r\n".join(reviews).encode()
    content["tweets"] = (
        b"1\t0.6\tneutral\r\n2\t-2.0\tBad &amp;#38;  one\r\n3\t-2.0\tbad &#38; one\r\n"
    )
    make.main(packed(tmp_path, content), tmp_path)
    sides = {
        side: [json.loads(line) for line in (tmp_path / f"{side}.jsonl").open()]
        for side in ("train", "test")
    }
    found = [row for side in sides.values() for row in side]
    assert [row for row in found if row["domain"] == "tweets"] == [
        {"text": "Bad & one", "label": "negative", "domain": "tweets"}
    ]
    documents = {
        side: {row["text"].split()[1] for row in table if row["domain"] == "products"}
        for side, table in sides.items()
    }
    assert documents["train"] and documents["test"]
    assert not documents["train"] & documents["test"]
    assert len(found) == 121
    assert all(row["text"].endswith(("& 1", "& 2")) for row in found if row["domain"] == "products")


def packed(folder, content):
    """A source distribution with these files in the archive that it carries."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as archive:
        for stem, data in content.items():
            add(archive, f"hutto/{stem}_GroundTruth.txt", data)
    with tarfile.open(folder / "sdist.tar.gz", "w:gz") as archive:
        add(archive, f"vader/{make.ARCHIVE}", inner.getvalue())
    return folder / "sdist.tar.gz"


def add(archive, name, data):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))
