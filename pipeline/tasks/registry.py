"""The task catalogue: ours and the user's own files; and how a task becomes an environment."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterable
from importlib import resources
from importlib.metadata import entry_points
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pipeline.config import near
from pipeline.tasks import domains
from pipeline.tasks.spec import TaskSpec, parse_spec
from pipeline.tasks.task_env import Simulator, TaskEnv
from pipeline.yaml_text import parse_yaml

CATALOG = Path(__file__).parent / "catalog"
GROUP = "eft.tasks"  # entry points of other packages that ship tasks
TEACHERS = "teachers.yaml"  # may lie among task files: how their teachers are trained
TEXTS = Path(__file__).parent.parent / "texts"  # apart from the rest: a changed text re-runs only what reads texts


def load_catalogue(folder: str | Path | None = None) -> dict[str, TaskSpec]:
    """Read every task: the built-in ones, those that installed packages ship, then the user's own.

    Args:
        folder: folder of the user's own task files, one task per `*.yaml` but teachers.yaml, or one such file; None
            for none.

    Raises:
        ValueError: a file is not valid, or two tasks share a name or a text; the files and tasks are named.
    """
    specs: dict[str, TaskSpec] = {}
    files: dict[str, Path | str] = {}
    for spec, path in [*_built_in(), *_shipped(), *_own(folder)]:
        if spec.name in specs:
            raise ValueError(f"{path}: the task name `{spec.name}` is taken by {files[spec.name]}. Choose another.")
        specs[spec.name], files[spec.name] = spec, path
    if shared := texts_shared(specs.values()):
        raise ValueError(shared)
    return specs


def load_own(folder: str | Path | None) -> list[TaskSpec]:
    """Read the user's own tasks alone, of a folder or a file as `load_catalogue` says."""
    return [spec for spec, _ in _own(folder)]


def get(names: Iterable[str], folder: str | Path | None = None) -> list[TaskSpec]:
    """Return the tasks called `names`, in that order.

    Raises:
        ValueError: a name is unknown; its near matches are named.
    """
    catalogue = load_catalogue(folder)
    problems = [f"task `{name}` is not known.{near(name, list(catalogue))}" for name in names if name not in catalogue]
    if problems:
        problems.append("`eft tasks` lists every task" + (f"; your own are read from {folder}." if folder else "."))
        raise ValueError("\n".join(problems))
    return [catalogue[name] for name in names]


def load_file(path: str | Path) -> TaskSpec:
    """Read one of the user's own task files, which holds everything in one place; a module may lie beside it.

    Raises:
        ValueError: the file is missing or not valid; every wrong key is named.
    """
    spec = parse_spec(_read(Path(path)), str(path))
    if ":" in spec.env_id:  # names a module
        home = Path(path).resolve().parent
        while (home / "__init__.py").exists():  # a file within a package: what is imported is the whole package
            home = home.parent
        if str(home) not in sys.path:
            sys.path.append(str(home))  # workers get it too
    return spec


def texts_shared(specs: Iterable[TaskSpec]) -> str | None:
    """Say which text two tasks share, or a task has twice; None if every text is there once.

    Language alone could not tell the tasks apart. Case and punctuation do not count.
    """
    owner: dict[str, str] = {}
    for spec in specs:
        for phrasing in range(len(spec.instructions)):
            text = spec.text(phrasing)
            key = " ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()))
            if owner.get(key) == spec.name:
                return f"the task `{spec.name}` has the text {text!r} twice. Change one."
            if key in owner:
                return f"the tasks `{owner[key]}` and `{spec.name}` share the text {text!r}. Change one."
            owner[key] = spec.name
    return None


def make(spec: TaskSpec, obs_dim: int, action_dim: int, render_size: int = 0) -> TaskEnv:
    """Build the environment of one task.

    Args:
        spec: the task.
        obs_dim: width that observations are zero-padded to.
        action_dim: width of actions, of which the first `spec.action_dim` are used.
        render_size: pixels of an image's side; 0 if it will not be drawn.

    Raises:
        ValueError: the simulator does not know the task, or widths do not fit.
        DomainUnavailable: the simulator's package is not installed, or is broken.
        AssetsUnavailable: the task needs files that are not on this machine.
    """
    more = {} if spec.action_bounds is None else {"action_bounds": spec.action_bounds}
    try:
        simulator: Simulator = domains.adapter(spec.suite)(spec.env_id, spec.env_kwargs, render_size, **more)
    except TypeError as error:
        if not spec.env_kwargs:
            raise
        raise ValueError(f"task {spec.name}: the simulator refuses env_kwargs {spec.env_kwargs}: {error}") from error
    try:
        return TaskEnv(spec, simulator, obs_dim, action_dim, render=render_size > 0)
    except ValueError:
        simulator.close()
        raise


def _built_in() -> list[tuple[TaskSpec, Path]]:
    found = []
    for path in sorted(CATALOG.glob("*.yaml")):
        catalog, texts = _read(path), _read(TEXTS / path.name)
        for name, values in catalog["tasks"].items():
            words = texts["tasks"].get(name, {})
            if "embodiment" in words:
                words = {**words, "embodiment": texts["embodiments"][words["embodiment"]]}
            found.append((parse_spec({"name": name, **catalog["all"], **values, **words}, f"{path}: {name}"), path))
    return found


def _shipped() -> list[tuple[TaskSpec, str]]:
    """Read the task files of installed packages."""
    files = [file for file in _shipped_files() if file.name != TEACHERS]
    return [
        (parse_spec(parse_yaml(file.read_text(encoding="utf-8"), str(file)), str(file)), str(file)) for file in files
    ]


def shipped_teachers() -> list[Traversable]:
    """Return the files teachers.yaml of installed packages, which lie among their task files."""
    return [file for file in _shipped_files() if file.name == TEACHERS]


def _shipped_files() -> list[Traversable]:
    """Return the YAML files of the packages that entry points of the group `eft.tasks` name."""
    found = []
    for point in entry_points(group=GROUP):
        try:
            files = [file for file in resources.files(point.value).iterdir() if file.name.endswith((".yaml", ".yml"))]
        except (ImportError, OSError) as error:
            raise ValueError(
                f"the package {point.dist.name if point.dist else point.name} offers tasks in {point.value!r}, which "
                f"cannot be read: {error}. Repair or uninstall it."
            ) from error
        found += sorted(files, key=lambda file: file.name)
    return found


def _own(folder: str | Path | None) -> list[tuple[TaskSpec, Path]]:
    if folder is None:
        return []
    folder = Path(folder)
    if folder.is_file():
        return [(load_file(folder), folder)]
    if not folder.is_dir():
        raise ValueError(f"the folder of your own tasks, {folder}, does not exist. Create it or correct tasks.folder.")
    files = sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])
    return [(load_file(path), path) for path in files if path.name != TEACHERS]


def _read(path: Path) -> Any:
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise ValueError(f"the task file {path} does not exist.") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
