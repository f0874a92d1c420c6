"""The pages of the documentation, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "docs" / "samples"
CONTRACT = ROOT / "docs" / "contract.md"
OPERATIONS = ROOT / "docs" / "operations.md"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


class Block(NamedTuple):
    """A fenced block: what its first line says, its text, and the line it begins on."""

    info: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    found = []
    info: str | None = None
    text: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if not line.startswith("```"):
            text.append(line)
        elif info is None:
            info, text = line.removeprefix("```"), []
        else:
            found.append(Block(info, "\n".join(text), number - len(text) - 1))
            info = None
    assert info is None, f"{page}: a fenced block is not closed"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )


def code(page: Path) -> list[str]:
    """The lines of fenced and indented blocks, and what stands between backticks."""
    text = prose(page)
    fenced = [line for block in blocks(page) for line in block.text.splitlines()]
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    return fenced + indented + re.findall(r"`([^`\n]+)`", text)


def paragraphs(page: Path) -> list[str]:
    return re.split(r"\n\s*\n", prose(page))


def table(page: Path, first_column: str) -> list[list[str]]:
    """The rows of the table whose heading begins with `first_column`, cell by cell."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"| {first_column} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def slug(heading: str) -> str:
    """The anchor that a heading gets where Markdown is shown."""
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
