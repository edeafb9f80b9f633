"""The pages that users read, cut into fenced blocks.

A comment right above a block says what the tests do with it::

    <!-- file: NAME -->        it lies in the folder in which the page's commands run
    <!-- run -->               it is run as a program; the ``text`` block that follows is what it prints
    <!-- client -->            the same, against a running quickstart at http://127.0.0.1:8000
    <!-- same as: PATH -->     it is the code of that file, without the file's docstring
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE, OutputChecker
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DEMO_URL = "http://127.0.0.1:8000"

_BLOCK = re.compile(
    r"^(?:<!-- (?P<verb>[a-z ]+)(?:: (?P<argument>\S+))? -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """``line`` counts from 1; ``output``: the ``text`` block behind this one, "" without one."""

    page: Path
    line: int
    language: str
    text: str
    verb: str
    argument: str
    output: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """One ``$`` line of a console block, and what the page shows behind it."""

    block: Block
    line: str
    output: str

    def __str__(self) -> str:
        return f"{self.block}: {self.line}"


def blocks(language: str | None = None) -> list[Block]:
    """Every block of every page, in order; of one language where it is given."""
    found: list[Block] = []
    for page in PAGES:
        content = page.read_text(encoding="utf-8")
        matches = list(_BLOCK.finditer(content))
        for number, match in enumerate(matches):
            after = matches[number + 1] if number + 1 < len(matches) else None
            follows = after is not None and not content[match.end() : after.start()].strip()
            found.append(
                Block(
                    page=page,
                    line=content.count("\n", 0, match.start()) + 1,
                    language=match["language"],
                    text=match["text"],
                    verb=match["verb"] or "",
                    argument=match["argument"] or "",
                    output=after["text"] if after and follows and after["language"] == "text" else "",
                )
            )
    return [block for block in found if language is None or block.language == language]


def commands() -> list[Command]:
    """Every shown command line, whoever the program is."""
    found: list[Command] = []
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            found.append(Command(block=block, line=line.partition("  #")[0].strip(), output=output))
    return found


def is_shown(shown: str, real: str) -> bool:
    """Whether a page tells the truth: equal but for white space, with ``...`` for what it leaves out."""
    return OutputChecker().check_output(shown, real, ELLIPSIS | NORMALIZE_WHITESPACE)


def page(name: str) -> str:
    """The text of one page, by its name below ``docs/``."""
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def table_rows(text: str) -> list[list[str]]:
    """The cells of every table row, without heads and rules."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    heads = {number - 1 for number, row in enumerate(rows) if set("".join(row)) <= set("-: ")}
    return [row for number, row in enumerate(rows) if number not in heads and number - 1 not in heads]


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next of its own rank or a higher one."""
    start = re.search(rf"^(#+) {re.escape(heading)}$", text, re.MULTILINE)
    assert start is not None, f"no heading {heading!r}"
    end = re.compile(rf"^#{{1,{len(start[1])}}} ", re.MULTILINE).search(text, start.end())
    return text[start.end() : end.start() if end else len(text)]


def code_words(text: str) -> list[str]:
    """Everything between back-quotes, outside fenced blocks."""
    return re.findall(r"`([^`\n]+)`", _BLOCK.sub("", text))
