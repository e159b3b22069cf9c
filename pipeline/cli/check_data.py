"""`eft check-data`: look at demonstrations before anything learns from them."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_folder, own_folder

if TYPE_CHECKING:
    from pipeline.agent import Agent
    from pipeline.data.episode import Episode
    from pipeline.examine import Examined, Limits, Reference
    from pipeline.tasks.spec import TaskSpec


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    check = add_command(
        commands,
        "check-data",
        check_data,
        "examine demonstrations before you train on them",
        "eft check-data my_tasks/demos --checkpoint checkpoints/finetune/model",
    )
    check.add_argument(
        "data", type=Path, metavar="FOLDER", help="holds episodes.parquet or TASK/episodes.parquet (datasets/README.md)"
    )
    check.add_argument(
        "--checkpoint",
        metavar="CHECKPOINT",
        help="compare with what it knows of each body (default: with other demonstrations of it, if there are any)",
    )
    check.add_argument(
        "--page", type=Path, metavar="HTML", help="where the page goes (default: the folder of temporary files)"
    )
    add_folder(check)


def check_data(options: argparse.Namespace) -> int:
    """Examine demonstrations, print a table and what was found, write the page; 2 if something is wrong."""
    from pipeline.examine import examine, shared
    from pipeline.report.data_page import write_page
    from pipeline.tasks import registry

    agent = _agent(options.checkpoint)
    catalogue = {**registry.load_catalogue(own_folder(options)), **(agent.tasks if agent else {})}
    data, problems = _read(options.data)
    limits = _limits(agent)
    found, twice = [], shared(data)
    for task, episodes in data.items():
        spec = catalogue.get(task)
        reference = _of_agent(agent, spec) if agent else _of_others(task, catalogue, data)
        found.append(examine(task, episodes, spec, reference, limits))
        if task in twice:
            found[-1].findings.insert(0, twice[task])
    _print(found, problems)
    page = options.page or Path(tempfile.gettempdir()) / f"eft-check-data-{options.data.resolve().name}.html"
    write_page(found, problems, str(options.data), page)
    print(f"page: {page}")
    return 2 if problems or any(finding.wrong for one in found for finding in one.findings) else 0


def _agent(checkpoint: str | None) -> Agent | None:
    if checkpoint is None:
        return None
    from pipeline.agent import Agent

    return Agent.from_pretrained(checkpoint)


def _read(folder: Path) -> tuple[dict[str, list[Episode]], list[str]]:
    """Return the demonstrations by task, and which files cannot be read."""
    from pipeline.data.demos import FILE, read_episodes

    paths = [folder / FILE] if (folder / FILE).is_file() else sorted(folder.glob(f"*/{FILE}"))
    if not paths:
        raise ValueError(
            f"no demonstrations: neither {folder / FILE} nor {folder}/TASK/{FILE} is there. `eft import` makes them of "
            "other formats."
        )
    data, problems = {}, []
    for path in paths:
        try:
            episodes = read_episodes(path, "what recorded it")
        except ValueError as error:
            problems.append(str(error))
            continue
        # A folder of one file may have any name.
        data[path.parent.name if path.parent != folder else episodes[0].task] = episodes
    return data, problems


def _limits(agent: Agent | None) -> Limits | None:
    """Return the limits of the checkpoint's model, else of the one that params.yaml describes."""
    from pipeline import config
    from pipeline.examine import Limits

    if agent is not None:
        return Limits.of(agent.model.config, agent.planner)
    if config.PARAMS.exists():
        return Limits.of(config.load(config.Model), config.load(config.Planner))
    return None


def _of_agent(agent: Agent, spec: TaskSpec | None) -> Reference | None:
    """Return what the checkpoint knows of a task's body; None where it does not know it, or sees images."""
    from pipeline.examine import Reference
    from pipeline.known_tasks import same_body

    mean, std = agent.table.obs_mean, agent.table.obs_std
    if spec is None or mean is None or std is None or agent.vision is not None:
        return None
    known = spec.name if spec.name in agent.tasks else same_body(agent.tasks, spec.text())
    if known is None:
        return None
    row = agent.table.names.index(known)
    parts = (part[row, : spec.obs_dim].double().cpu().numpy() for part in (mean, std))
    return Reference(f"what the checkpoint knows of the body of {known}", *parts)


def _of_others(task: str, catalogue: Mapping[str, TaskSpec], data: Mapping[str, list[Episode]]) -> Reference | None:
    """Return the statistics of other demonstrations with the same body, there and in datasets/demos."""
    from pipeline.data.demos import FILE, read_episodes
    from pipeline.examine import Reference
    from pipeline.learn.task_setup import DEMOS

    if (spec := catalogue.get(task)) is None:
        return None
    names = [
        name
        for name, other in catalogue.items()
        if name != task and (other.embodiment, other.obs_dim) == (spec.embodiment, spec.obs_dim)
    ]
    shown = {name: data[name] for name in names if name in data}
    for name in names:
        if name not in shown and (DEMOS / name / FILE).is_file():
            shown[name] = read_episodes(DEMOS / name / FILE, "`dvc repro demos`")
    episodes = [one for some in shown.values() for one in some if one.obs.shape[1] == spec.obs_dim]
    if not episodes:
        return None
    listed = ", ".join(list(shown)[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
    return Reference.of(f"the demonstrations of {listed} (same body)", episodes)


def _print(found: list[Examined], problems: list[str]) -> None:
    """Print one row per task, then what was found, what is wrong first."""
    from pipeline.data.episode import mean_known

    print(
        f"{'task':<32} {'episodes':>8} {'steps':>8} {'length':>9} {'score':>6} {'return':>9}  {'observed':<20} actions"
    )
    for one in found:
        episodes, lengths = one.episodes, one.lengths
        score = mean_known(episode.score for episode in episodes)
        total = mean_known(episode.episode_return for episode in episodes)
        obs, action = (_range([getattr(episode, name) for episode in episodes]) for name in ("obs", "action"))
        span = f"{lengths.min()}-{lengths.max()}"
        outcome = f"{'-' if score is None else f'{score:.2f}':>6} {'unknown' if total is None else f'{total:.4g}':>9}"
        print(f"{one.task:<32} {len(episodes):>8} {lengths.sum():>8} {span:>9} {outcome}  {obs:<20} {action}")
    for problem in problems:
        print(f"FAIL  {problem}")
    for wrong in (True, False):
        for one in found:
            for finding in one.findings:
                if finding.wrong == wrong:
                    print(f"{'FAIL' if wrong else 'note'}  {one.task}: {finding.text}")
    if not problems and not any(one.findings for one in found):
        print("ok    nothing was found")


def _range(arrays: list[Any]) -> str:
    return f"{min(array.min() for array in arrays):.3g} to {max(array.max() for array in arrays):.3g}"
