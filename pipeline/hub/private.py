"""What must never leave this machine: access tokens, its paths, files from outside a folder."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import get_token

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}")
_TEXTS = (".json", ".md", ".yaml", ".yml", ".txt")


def redact(text: str) -> str:
    """Return `text` with every access token blotted out."""
    token = get_token()
    return _TOKEN.sub("<token>", text.replace(token, "<token>") if token else text)


def refuse_private(folder: str | Path, root: str | Path = ".") -> None:
    """Refuse a release whose texts hold a token or a path of this machine, or that has a link to elsewhere.

    Args:
        folder: of the release.
        root: of the project, whose path counts as private like the home folder's.

    Raises:
        ValueError: names the file and what to do; never the token.
    """
    folder = Path(folder)
    token = get_token()
    places = {str(place.resolve()) for place in (Path(root), Path.home()) if len(place.resolve().parts) > 1}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink():
            raise ValueError(f"{name} of the release is a link. A release holds files only: copy what it points to.")
        if path.suffix not in _TEXTS:
            continue
        text = path.read_text(errors="replace", encoding="utf-8")
        if _TOKEN.search(text) or (token and token in text):
            raise ValueError(
                f"{name} of the release would hold an access token. Remove it from params.yaml or the tasks."
            )
        for place in places:
            if re.search(rf"(?<![\w/.-]){re.escape(place)}(?=/|\b)", text):
                raise ValueError(
                    f"{name} of the release would hold a path of this machine ({place}). Write it relative."
                )
