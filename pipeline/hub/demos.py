"""The demonstrations' release: a data set of the Hub, one configuration per task, viewable and streamable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData

from pipeline.data.demos import FILE, read_episodes
from pipeline.data.episode import Episode, mean_known
from pipeline.extras import needs
from pipeline.files import atomic_folder
from pipeline.hub.lerobot import LeRobotForm, write_lerobot
from pipeline.hub.private import refuse_private
from pipeline.hub.release import render
from pipeline.tasks.spec import TaskSpec

with needs("pipeline"):
    import pyarrow.parquet as pq

TEMPLATE = Path(__file__).with_name("demos_card.md.jinja")


def write_demos_release(
    demos: str | Path,
    specs: Sequence[TaskSpec],
    folder: str | Path,
    repo_id: str | None,
    root: str | Path = ".",
    lerobot: LeRobotForm | None = None,
) -> None:
    """Make the folder of a data set: every task's parquet file, checked, and a card that tells `datasets` of them.

    The same inputs give the same bytes.

    Args:
        demos: holds `<task>/episodes.parquet`.
        specs: the tasks to release.
        folder: replaced whole, or not at all.
        repo_id: where it will be found; None says in the card that it is the folder itself.
        root: of the project, whose path must not be in it.
        lerobot: how much is written in LeRobot's form beside them; None for nothing.

    Raises:
        FileNotFoundError: a task has no demonstrations.
        ValueError: a file is damaged, or a text holds a token or a path of this machine.
    """
    rows: list[dict[str, Any]] = []
    shown: dict[str, tuple[TaskSpec, list[Episode]]] = {}
    with atomic_folder(folder) as partial:
        for spec in specs:
            source, target = Path(demos) / spec.name / FILE, partial / spec.name / FILE
            episodes = read_episodes(source, "`dvc repro demos`")
            target.parent.mkdir()
            shutil.copyfile(source, target)
            shown[spec.name] = spec, episodes[: lerobot.episodes if lerobot else 0]
            rows.append(
                {
                    "spec": spec,
                    "episodes": len(episodes),
                    "steps": sum(len(episode.action) for episode in episodes),
                    "obs_dim": episodes[0].obs.shape[1],
                    "action_dim": episodes[0].action.shape[1],
                    "score": mean_known(episode.score for episode in episodes),
                    "methods": sorted({episode.method for episode in episodes}),
                }
            )
        black = write_lerobot(partial, shown, lerobot.video_size) if lerobot and shown else None
        source = repo_id or Path(folder).as_posix()
        (partial / "README.md").write_text(_card(rows, source, lerobot, black), encoding="utf-8")
        refuse_private(partial, root)


def summary(folder: str | Path) -> list[tuple[str, int, int]]:
    """Return (task, episodes, bytes) of every task in a folder of demonstrations, from the files' own headers."""
    paths = sorted(Path(folder).glob(f"*/{FILE}"))
    return [(path.parent.name, pq.read_metadata(path).num_rows, path.stat().st_size) for path in paths]


def _card(rows: list[dict[str, Any]], source: str, lerobot: LeRobotForm | None, black: Sequence[str] | None) -> str:
    """Write the card; `black` are the tasks without pictures in LeRobot's form, None where nothing is in it."""
    names = [row["spec"].name for row in rows]
    form_name = "lerobot-form" if "lerobot" in names else "lerobot"
    more = [] if black is None else [{"config_name": form_name, "data_files": "data/*/*.parquet"}]
    data = DatasetCardData(
        pretty_name="Eft demonstrations",
        license="mit",
        task_categories=["reinforcement-learning", "robotics"],
        tags=[
            "reinforcement-learning",
            "robotics",
            "demonstrations",
            "continuous-control",
            *(["LeRobot"] if more else []),
        ],
        configs=[*({"config_name": name, "data_files": f"{name}/{FILE}"} for name in names), *more],
        size_categories=[_size(sum(row["episodes"] for row in rows))],
    )
    form = {"lerobot": lerobot, "black": black}
    return render(TEMPLATE, front_matter=data.to_yaml(), rows=rows, source=json.dumps(source), **form)


def _size(rows: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if rows < bound), "1M<n<10M")
