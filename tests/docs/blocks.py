"""The code blocks of README, docs/ and what docs/ include, as they stand."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md")), *(ROOT / "docs").rglob("*.md")]
    + [ROOT / folder / "README.md" for folder in ("datasets", "my_tasks", "examples", "pipeline/teachers")]
)
_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str  # path below the project
    line: int  # of its first line
    language: str
    text: str  # without the indentation of a list
    in_list: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Return the blocks of one page, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(
            page.relative_to(ROOT).as_posix(),
            text.count("\n", 0, found.start()) + 2,
            found["language"],
            textwrap.dedent(found["text"]),
            bool(found["indent"]),
        )
        for found in _FENCE.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def of_language(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def code_spans() -> list[tuple[str, str]]:
    """Return what stands between backticks in the texts, with its page; fenced blocks left out."""
    found = []
    for page in PAGES:
        text = _FENCE.sub("", page.read_text(encoding="utf-8"))
        spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", text)
        found += [(page.relative_to(ROOT).as_posix(), " ".join(span.split())) for span in spans]
    return found
