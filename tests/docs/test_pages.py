"""README and docs: what they point to exists, what they tell to type is taken, what is made from
the code is up to date."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import strategies
from clients.owner import Owner
from fedlora.cli import app
from fedlora.config import Config
from fedlora.reference import reference

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = {"name": lambda page: page.relative_to(ROOT).as_posix()}["name"]
COMMANDS: Any = typer.main.get_command(app)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    words = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
    return words.strip().replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(h) for h in re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)}


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link, its anchor, and every experiment that is named."""
    text = page.read_text("utf-8")
    wrong = []
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            wrong.append(link)
    wrong += [
        x for x in re.findall(r"simulations/experiments/\S+\.toml", text) if not (ROOT / x).exists()
    ]
    assert not wrong


def prose(text: str) -> str:
    """A page without its boxes."""
    return re.sub(r"```.*?```", "", text, flags=re.DOTALL)


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `fedlora …` in a box of shell, without remarks, and of every one in a
    sentence that has options or settings; lines that go on are joined."""
    boxes = re.findall(r"```(?:sh)?\n(.*?)```", text, re.DOTALL)
    lines = [line for box in boxes for line in box.replace("\\\n", " ").splitlines()]
    told = re.findall(r"`(fedlora [^`]*(?:--|=)[^`]*)`", prose(text))
    for line in [*lines, *(" ".join(words.split()) for words in told)]:
        if re.match(r"\s*(\.venv/bin/)?fedlora ", line) and "…" not in line and "|" not in line:
            yield shlex.split(line, comments=True)[1:]


def unknown(given: list[str]) -> list[str]:
    """The settings among these that do not exist. A method of one's own has its own, and
    `fedlora compare` takes them for one method alone: fedsb.adapter.rank=32."""
    known = {f"{s}.{k}" for s, fields in Config().model_dump().items() for k in fields}
    known |= {f"strategy.{k}" for k in strategies.settings()}
    own = any(x.startswith("strategy.name=") and ":" in x for x in given)
    keys = [x.partition("=")[0].split(".") for x in given]
    keys = [k[1:] if k[0] in strategies.BUILTIN else k for k in keys]
    found = [".".join(k) for k in keys if not (own and k[0] == "strategy")]
    return [k for k in found if k not in known]


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_what_is_to_be_typed_is_taken(page: Path) -> None:
    """Each command exists and has the options that it is given, and each setting exists."""
    for words in commands(page.read_text("utf-8")):
        group, rest = COMMANDS, words
        while isinstance(group, click.Group):
            assert rest[0] in group.commands, f"fedlora {' '.join(words)}"
            group, rest = group.commands[rest[0]], rest[1:]
        context = group.make_context(
            rest[0] if rest else "fedlora", list(rest), resilient_parsing=False
        )
        given = [x for x in context.params.get("arguments") or [] if "=" in x]
        assert not unknown(given)


def test_the_command_line_is_really_looked_at() -> None:
    """An option or setting that does not exist is noticed, and there are commands to look at."""
    assert sum(len(list(commands(page.read_text("utf-8")))) for page in PAGES) > 12
    with pytest.raises(click.UsageError):
        COMMANDS.commands["run"].make_context("run", ["--nothing"])
    assert unknown(["run.rond=3", "fedsb.adapter.rnk=2"]) == ["run.rond", "adapter.rnk"]


def test_the_configuration_s_page_is_the_code_s() -> None:
    """docs/configuration.md says every field as it is."""
    made = reference({name: strategies.load(name) for name in strategies.BUILTIN}, Owner)
    there = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert there == made, "docs/configuration.md is out of date: run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=NAMED)
def test_equations_are_written_as_github_keeps_them(page: Path) -> None:
    """In boxes of math, or between $` and `$ on one line: in plain dollars `\\,` loses its
    backslash, and a line's end ends the equation. What is opened is closed."""
    text = page.read_text("utf-8")
    equations = re.findall(r"```math\n(.*?)```", text, re.DOTALL)
    equations += re.findall(r"\$`(.*?)`\$", prose(text))
    rest = re.sub(r"`[^`]*`", "", re.sub(r"\$`.*?`\$", "", prose(text)))
    assert "$" not in rest
    assert not [e for e in equations if e.count("{") != e.count("}") or "$" in e]


@pytest.mark.parametrize("name", strategies.BUILTIN)
def test_every_method_has_its_section_and_paper(name: str) -> None:
    """In docs/methods.md, under its own name."""
    text = (ROOT / "docs/methods.md").read_text("utf-8")
    section = re.search(rf"^## {name}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    papers = re.findall(r"\d{4}\.\d{5}", strategies.load(name).paper)
    assert section and all(paper in section[1] for paper in papers)
