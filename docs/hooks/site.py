"""What MkDocs asks while it builds: reference pages from the code, pages of other files, links out of docs/.

`mkdocs.yml` names this file; `make docs` builds.
"""

from __future__ import annotations

from typing import Any

import commands
import figures
import outside
import parameters
from mkdocs.structure.files import File

_GENERATED = {
    "<!-- parameters -->": parameters.as_markdown,
    "<!-- commands -->": commands.as_markdown,
    "<!-- figures -->": figures.as_markdown,
}


def on_files(files: Any, config: Any) -> Any:
    """Add copies of the files that pages link to."""
    names: set[str] = set()
    for file in files.documentation_pages():
        text = outside.included(file.content_string, file.src_uri)
        names |= outside.linked(text, file.src_uri)[1]
    for name in sorted(names):
        files.append(File.generated(config, f"{outside.COPIES}/{name}", abs_src_path=str(outside.ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in what a page takes from elsewhere."""
    for place, made in _GENERATED.items():
        if place in markdown:
            markdown = markdown.replace(place, made())
    return outside.linked(outside.included(markdown, page.file.src_uri), page.file.src_uri)[0]
