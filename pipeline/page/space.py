"""A folder that runs as a Space on the Hugging Face Hub: the page of `eft play`, in Docker, with a checkpoint."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import jinja2

from pipeline import store
from pipeline.files import add_files
from pipeline.language.encoder import PINS
from pipeline.language.head import bare
from pipeline.tasks.domains import DOMAINS

PORT = 7860  # where a Space is looked at
ROOT = Path(__file__).parent.parent.parent
_SOURCE = (
    "pyproject.toml", "constraints.txt", "README.md", "LICENSE", "eft", "pipeline", "stages",
    "dvc.yaml", "params.yaml", "presets", "my_tasks/README.md", ".gitignore", ".dvcignore",  # what a wheel carries
)  # fmt: skip


def write_space(
    folder: str | Path, checkpoint: str, revision: str | None, title: str, requirement: str | None = None
) -> str | None:
    """Write a Space: README.md with its metadata, Dockerfile, what is to be installed, and the checkpoint.

    Files of these names are replaced, others in the folder stay: it may be a clone of a Space.

    Args:
        folder: where to.
        checkpoint: a folder, which is copied, or `owner/name` on the Hub, which the Space fetches when it starts.
        revision: commit, tag or branch on the Hub; a branch or None is fixed to the commit of now.
        title: of the Space.
        requirement: what pip installs as Eft, e.g. `eft==0.1.0`, without extras; None copies this source.

    Returns:
        The id of a text encoder that the Space will not have, since it is named by no commit; None where it has it.

    Raises:
        ValueError: it is no checkpoint, or the title is not one line.
        FileNotFoundError: there is no source to copy.
        OSError: the checkpoint is not to be had, or the disk is full.
    """
    if not title.strip() or not title.isprintable():
        raise ValueError(f"the title {title!r} is not one line of text.")
    if requirement is None and not (ROOT / "pyproject.toml").is_file():
        raise FileNotFoundError(
            f"{ROOT} is no checkout of Eft whose source could be copied: say what pip is to install, e.g. "
            "`--eft eft==0.1.0`, or the address of a wheel."
        )
    found = store.fetch(checkpoint, revision, store.CHECKPOINT_FILES)
    content = store.read_checkpoint(found.folder)
    extras = sorted({"play", *(extra for spec in content.specs if (extra := DOMAINS[spec.suite].extra))})
    if requirement is not None:
        named, more = requirement.startswith("eft"), f"eft[{','.join(extras)}]"
        requirement = requirement.replace("eft", more, 1) if named else f"{more} @ {requirement}"
    encoder = bare(content.embeddings.encoder)
    to_be_had = encoder.rpartition("@")[0] in PINS or re.fullmatch(r"[\w.-]+/[\w.-]+@[0-9a-f]{40}@[0-9a-f]+", encoder)
    facts: dict[str, Any] = {
        "title": title,
        "port": PORT,
        "requirement": requirement,
        "extras": ",".join(extras),
        "encoder": encoder if to_be_had else None,
        "checkpoint": checkpoint if found.commit else "checkpoint",
        "revision": found.commit,
        "specs": content.specs,
    }
    with add_files(folder, last="Dockerfile") as partial:
        if found.commit is None:  # its own files alone: whatever else lies beside them is not for everyone to see
            for name in store.listed(found.folder, store.CHECKPOINT_FILES):
                _copy(found.folder / name, partial / "checkpoint" / name)
        if requirement is None:
            for name in _SOURCE:
                _copy(ROOT / name, partial / "eft" / name)
        for name in ("README.md", "Dockerfile"):
            (partial / name).write_text(_render(f"space_{name}.jinja", facts), encoding="utf-8")
    return None if to_be_had or "@" not in encoder else encoder


def _copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without what Python and others have left in it."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _render(name: str, facts: dict[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=False,  # neither file is HTML; what comes from outside goes through `tojson`
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"ensure_ascii": False}
    return environment.get_template(name).render(facts)
