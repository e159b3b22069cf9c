"""Links of a page to what lies outside docs/: pages made of other files, copies of files, else plain text."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# Files of the project that are pages as well. They stay where a reader of the repository looks for them.
PAGES = {
    "EXPERIMENTS.md": "experiments.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "my_tasks/README.md": "how-to/environment.md",
    "examples/README.md": "how-to/package.md",
    "datasets/README.md": "reference/demonstrations.md",
}
COPIES = "files"  # where copies of other files lie in the site
# With the line above it, which tells a reader of the repository where the text is.
_INCLUDE = re.compile(r"(?m)^(?:This page is .+\n\n)?<!-- include (\S+) -->$")
_CODE = r"^```.*?^```$|^ +```.*?^ +```$|`[^`\n]+`"
_LINK = re.compile(rf"(?ms)(?P<code>{_CODE})|\]\((?P<target>[^)\s]+)\)")
_TO_FOLDER = re.compile(rf"(?ms)(?P<code>{_CODE})|\[(?P<label>`?[^\[\]]+`?)\]\((?P<target>[^)\s]+)\)")


def included(text: str, page: str) -> str:
    """Return a page's text with every `<!-- include FILE -->` replaced by that file, without its title.

    Args:
        text: Markdown.
        page: its path below docs/; files are named relative to its folder.
    """

    def read(found: re.Match[str]) -> str:
        path = (DOCS / page).parent.joinpath(found[1]).resolve()
        body = re.sub(r"\A# .*\n+", "", path.read_text(encoding="utf-8"))
        return moved(body, path.parent, (DOCS / page).parent)

    return _INCLUDE.sub(read, text)


def moved(text: str, source: Path, folder: Path) -> str:
    """Return Markdown whose relative links, meant from `source`, are meant from `folder`."""

    def replace(found: re.Match[str]) -> str:
        if found["code"] or _elsewhere(found["target"]):
            return found[0]
        path, mark, anchor = found["target"].partition("#")
        return f"]({Path(os.path.relpath(source / path, folder)).as_posix()}{mark}{anchor})"

    return _LINK.sub(replace, text)


def linked(text: str, page: str) -> tuple[str, set[str]]:
    """Return a page's text with links that work in the site, and the files of the project that it needs copies of.

    A folder, and a page of text that is none of the site's, is named and not linked. What does not exist stays as it
    is, so that the strict build names it.
    """
    folder, copies = (DOCS / page).parent, set()

    def name(found: re.Match[str]) -> str:
        if found["code"] or _elsewhere(found["target"]):
            return found[0]
        path = folder.joinpath(found["target"].partition("#")[0]).resolve()
        known = path.is_relative_to(DOCS) or _name(path) in PAGES
        return found["label"] if not known and (path.is_dir() or path.suffix == ".md") else found[0]

    def replace(found: re.Match[str]) -> str:
        if found["code"] or _elsewhere(found["target"]):
            return found[0]
        path, mark, anchor = found["target"].partition("#")
        there = folder.joinpath(path).resolve()
        if there.is_relative_to(DOCS) or not there.is_file():
            return found[0]
        if _name(there) not in PAGES:
            copies.add(_name(there))
        target = DOCS / PAGES.get(_name(there), f"{COPIES}/{_name(there)}")
        return f"]({Path(os.path.relpath(target, folder)).as_posix()}{mark}{anchor})"

    return _LINK.sub(replace, _TO_FOLDER.sub(name, text)), copies


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


def _elsewhere(target: str) -> bool:
    return target.startswith("#") or re.match(r"[a-z]+:", target) is not None
