"""A new project: a folder in which `dvc repro` runs the pipeline on the installed Eft, without a checkout of it."""

from __future__ import annotations

import io
from pathlib import Path

from ruamel.yaml import YAML

from pipeline.files import add_files
from pipeline.installed import FILE
from pipeline.project_files import ROOT, STAGES

_COPIED = ("params.yaml", ".gitignore", ".dvcignore", "my_tasks/README.md")
_DVC = {
    ".dvc/config": "[core]\n    analytics = false\n    check_update = false\n",
    ".dvc/.gitignore": "/config.local\n/tmp\n/cache\n",
}
_WITHOUT_GIT = {".dvc/config.local": "[core]\n    no_scm = true\n"}
_MEASURED = "checkpoints/ways.json"  # measured of Eft's own default run: a new project has none
_CODE_STAGE = {
    "desc": "Which version of Eft's code is installed.",
    "cmd": "python -m pipeline.installed",
    "always_changed": True,
    "outs": [{FILE: {"cache": False}}],
}
_HEAD = """\
# Written by `eft init`. Where Eft's own dvc.yaml depends on a folder of its code, this one depends on the folder's hash
# in {file}, which the stage `code` writes. stages/ and all parameters are yours to change.
"""


def write_project(folder: str | Path) -> list[str]:
    """Write dvc.yaml, params.yaml, the stages' entry points, and what DVC wants to find.

    Args:
        folder: where to; made if need be, and may hold other files, as a new Git repository does.

    Returns:
        The names of the files.

    Raises:
        FileExistsError: one of the files is there; nothing is written then.
        OSError: the disk is full, or the folder cannot be written to.
    """
    folder = Path(folder)
    texts = {name: (ROOT / name).read_text(encoding="utf-8") for name in _COPIED}
    texts |= {f"stages/{path.name}": path.read_text(encoding="utf-8") for path in sorted(STAGES.glob("*.py"))}
    texts |= {"dvc.yaml": on_installed_code((ROOT / "dvc.yaml").read_text(encoding="utf-8")), **_DVC}
    if not (folder / ".git").exists():
        texts |= _WITHOUT_GIT
    if there := [name for name in texts if (folder / name).exists()]:
        raise FileExistsError(
            f"{folder} holds {', '.join(there)} already; nothing was written. Choose an empty folder, or move these."
        )
    with add_files(folder, last="dvc.yaml") as partial:
        for name, text in texts.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_text(text, encoding="utf-8")
    return sorted(texts)


def on_installed_code(text: str) -> str:
    """Return a dvc.yaml whose stages depend on the hashes of Eft's code in place of the code itself.

    Args:
        text: a dvc.yaml whose stages list files and folders of `pipeline/` among their deps.
    """
    yaml = YAML()
    yaml.width = 120
    yaml.indent(mapping=2, sequence=4, offset=2)
    found = yaml.load(text)
    for stage in found["stages"].values():
        stage = stage.get("do", stage)
        code = [dep for dep in stage.get("deps", []) if dep.startswith("pipeline/")]
        stage["deps"] = [dep for dep in stage.get("deps", []) if dep not in (*code, _MEASURED)]
        if code:
            stage["params"] = [*stage.get("params", []), {FILE: [name.removesuffix(".py") for name in code]}]
    found["stages"].insert(0, "code", _CODE_STAGE)
    out = io.StringIO()
    yaml.dump(found, out)
    return _HEAD.format(file=FILE) + out.getvalue()
