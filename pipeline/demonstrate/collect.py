"""Collect demonstrations of many tasks on all cores, so that an interrupted collection goes on where it stopped.

Attempt k of a task depends on the run's seed, the task and k alone, and the first good ones are kept: the result does
not depend on the number of workers. Every finished attempt is on disk as `<task>/<k>.json`, with the episode beside it
if it was good; a restart skips these.

Tasks that nobody demonstrates, or not well enough, end the collection or are left without, as `demos.missing` says.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import config
from pipeline.data.demos import FILE, read_episodes, write_card, write_episodes, write_missing
from pipeline.data.episode import Episode, mean_known
from pipeline.demonstrate.play import expert_method, least_score, play
from pipeline.files import atomic_folder, read_json, write_json
from pipeline.progress import Progress
from pipeline.run.cores import available_cores
from pipeline.run.workers import Workers
from pipeline.tasks.spec import TaskSpec

_ADVICE = "lower demos.workers. What was collected is kept: the same command goes on from there."


@dataclass
class TaskState:
    """How far one task is."""

    spec: TaskSpec
    wanted: int
    most_attempts: int
    folder: Path
    teachers: Path | None = None
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)  # outcome of each finished attempt
    in_flight: set[int] = field(default_factory=set)

    @property
    def kept(self) -> list[int]:
        """Numbers of the good attempts, in order."""
        return sorted(attempt for attempt, note in self.notes.items() if note["kept"])

    def next_attempt(self) -> int | None:
        """Return the next attempt to play; None while enough may be under way, or if all were played.

        No attempt starts that a lucky outcome of the earlier ones would make needless: so exactly the shortest
        sufficient run of attempts is played, however many play at once.
        """
        if len(self.kept) + len(self.in_flight) >= self.wanted:
            return None
        attempt = next(k for k in range(self.most_attempts + 1) if k not in self.notes and k not in self.in_flight)
        return attempt if attempt < self.most_attempts else None

    @property
    def shortfall(self) -> str | None:
        """Why there will not be as many demonstrations as wanted; None if there are, or still may be."""
        if len(self.kept) >= self.wanted or self.in_flight or self.next_attempt() is not None:
            return None
        best = max(note["score"] for note in self.notes.values())
        return (
            f"{len(self.kept)} of {self.wanted} demonstrations after {len(self.notes)} attempts; the best scored "
            f"{best:.3f}, kept is what scores {least_score(self.spec, self.teachers):g} or more"
        )


def collect(
    wanted: Sequence[tuple[TaskSpec, int]],
    demos: config.Demos,
    seed: int,
    folder: str | Path,
    run_dir: str | Path,
    own: str | Path,
    teachers: Path | None = None,
) -> dict[str, Any]:
    """Write demonstrations of every task to `folder/<task>/`, and what the `datasets` library needs beside them.

    Args:
        wanted: tasks and how many demonstrations of each; tasks with 0 are left out.
        demos: how to collect.
        seed: the run's seed.
        folder: where the demonstrations go; replaced whole, when all are there.
        run_dir: where finished attempts wait; the caller removes it on success.
        own: folder of the user's own demonstrations; a task found there is taken from there, not played.
        teachers: folder of trained teachers; None for none.

    Returns:
        `tasks`: for each `kept`, `attempts`, `score` (mean), `seconds` (of one core), `method`, `steps`; `missing`:
        why a task has none, or fewer than wanted (`demos.missing: go_on`).

    Raises:
        ValueError: tasks have no expert, or the user's own demonstrations of one are not valid.
        RuntimeError: a task's expert fails too often, or a worker died or failed.
    """
    wanted = [(spec, count) for spec, count in wanted if count]
    brought = {spec.name: read_own(spec, Path(own)) for spec, _ in wanted if (Path(own) / spec.name).exists()}
    missing = without_expert([spec for spec, _ in wanted if spec.name not in brought], demos, teachers)
    played = [(spec, count) for spec, count in wanted if spec.name not in brought and spec.name not in missing]
    # Planners first: with the long episodes at the end one worker would play while the others wait.
    played.sort(key=lambda one: expert_method(one[0], teachers) != "planner")
    states = [
        TaskState(spec, count, count * demos.max_attempts, Path(run_dir) / spec.name, teachers)
        for spec, count in played
    ]
    for state in states:
        read_notes(state)
    play_all(states, demos, seed)
    missing |= {state.spec.name: why for state in states if (why := state.shortfall)}

    episodes = {state.spec.name: [read_attempt(state, k) for k in state.kept[: state.wanted]] for state in states}
    episodes |= brought
    report = {}
    with atomic_folder(folder) as partial:
        for spec, _ in wanted:
            if not episodes.get(spec.name):
                continue
            write_episodes(partial / spec.name / FILE, episodes[spec.name])
            notes = next((state.notes for state in states if state.spec is spec), {})
            report[spec.name] = describe(episodes[spec.name], notes)
        write_card(partial, list(report))
        if missing:
            write_missing(partial, missing)
    for task, why in missing.items():
        print(f"demos: {task}: {why}", file=sys.stderr)
    return {"tasks": report, "missing": missing}


def without_expert(specs: Sequence[TaskSpec], demos: config.Demos, teachers: Path | None = None) -> dict[str, str]:
    """Return the tasks that nobody demonstrates, and why.

    Raises:
        ValueError: there are some, and `demos.missing` is `stop`; all are named.
    """
    found = {}
    for spec in specs:
        try:
            expert_method(spec, teachers)
        except ValueError as error:
            found[spec.name] = str(error).removeprefix(f"{spec.name} has ")
    if found and demos.missing == "stop":
        reason = found[next(iter(found))]
        raise ValueError(
            f"{', '.join(found)} ha{'s' if len(found) == 1 else 've'} {reason} Either bring demonstrations "
            "(datasets/README.md says how), or learn from interaction alone: `demos.missing: go_on` lets every such "
            "task do so, `demos.held_out_episodes: 0` those under tasks.held_out."
        )
    return found


def play_all(states: list[TaskState], demos: config.Demos, seed: int) -> None:
    """Play attempts until every task has its demonstrations, or as many as it gets.

    Raises:
        RuntimeError: a task does not get all, and `demos.missing` is `stop`; or a worker died or failed.
    """
    refuse_shortfall(states, demos)
    if all(state.next_attempt() is None for state in states):
        return
    total, done = sum(state.wanted for state in states), sum(min(len(s.kept), s.wanted) for s in states)
    by_name = {state.spec.name: state for state in states}
    with (
        Workers(min(demos.workers or available_cores(), total - done), _ADVICE) as workers,
        Progress("demos", total, "episodes", done) as progress,
    ):
        while True:
            refuse_shortfall(states, demos)
            while not workers.full and (found := _next_attempt(states)):
                state, attempt = found
                state.in_flight.add(attempt)
                name = f"{state.spec.name}, attempt {attempt}"
                work = state.spec, attempt, seed, demos.action_noise, state.folder, state.teachers
                workers.start(name, play_attempt, *work)
            if not workers.working:
                return
            for note in workers.wait():
                state = by_name[note["task"]]
                state.in_flight.discard(note["attempt"])
                state.notes[note["attempt"]] = note
                progress.update(int(note["kept"]), task=note["task"], score=float(note["score"]))


def play_attempt(
    spec: TaskSpec, attempt: int, seed: int, action_noise: float, folder: Path, teachers: Path | None
) -> dict[str, Any]:
    """Play one attempt, store it if it is good enough, then note its outcome: the note is what makes it count.

    Returns:
        The note: `task`, `attempt`, `seed`, `score`, `kept`, and the core-`seconds` it took.
    """
    started = time.process_time()
    episode = play(spec, seed, attempt, action_noise, teachers)
    kept = episode.score >= least_score(spec, teachers)
    if kept:
        write_episodes(folder / f"{attempt:06d}.parquet", [episode])
    note = {
        "task": spec.name,
        "attempt": attempt,
        "seed": episode.seed,
        "score": episode.score,
        "kept": kept,
        "seconds": round(time.process_time() - started, 3),
    }
    write_json(folder / f"{attempt:06d}.json", note)
    return note


def refuse_shortfall(states: list[TaskState], demos: config.Demos) -> None:
    """Say which task will not get its demonstrations, unless the collection goes on without (`demos.missing`)."""
    short = next((state for state in states if state.shortfall), None)
    if short and demos.missing == "stop":
        raise RuntimeError(
            f"{short.spec.name}: {short.shortfall}. Lower demos.action_noise, raise demos.max_attempts, leave the task "
            "out, or set demos.missing to go_on: the run then goes on with what there is."
        )


def _next_attempt(states: list[TaskState]) -> tuple[TaskState, int] | None:
    """Return the next attempt to play, or None when all that may be needed is under way."""
    return next(((state, k) for state in states if (k := state.next_attempt()) is not None), None)


def read_notes(state: TaskState) -> None:
    """Read the outcomes of the attempts finished before, and drop what an earlier crash left unfinished."""
    state.folder.mkdir(parents=True, exist_ok=True)
    for path in state.folder.glob(".*.partial"):
        path.unlink()
    for path in sorted(state.folder.glob("*.json")):
        note = read_json(path, "`dvc repro demos`")
        if not note["kept"] or path.with_suffix(".parquet").exists():
            state.notes[note["attempt"]] = note


def read_attempt(state: TaskState, attempt: int) -> Episode:
    """Read the stored episode of a good attempt."""
    return read_episodes(state.folder / f"{attempt:06d}.parquet", "`dvc repro demos`")[0]


def read_own(spec: TaskSpec, folder: Path) -> list[Episode]:
    """Read the user's own demonstrations of a task.

    Raises:
        ValueError: they are not valid, or of another task or other widths than the task's file says.
    """
    path = folder / spec.name / FILE
    episodes = read_episodes(path, "whatever wrote it (datasets/README.md shows how)")
    for number, episode in enumerate(episodes):
        found = episode.task, episode.obs.shape[1], episode.action.shape[1]
        if found != (spec.name, spec.obs_dim, spec.action_dim):
            raise ValueError(
                f"{path}: episode {number} has task, obs_dim and action_dim {found}, expected "
                f"{(spec.name, spec.obs_dim, spec.action_dim)}."
            )
    return episodes


def describe(episodes: list[Episode], notes: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Summarise one task for datasets/demos.json."""
    score = mean_known(episode.score for episode in episodes)
    return {
        "kept": len(episodes),
        "attempts": len(notes) or len(episodes),
        "score": None if score is None else round(score, 4),  # None: their rewards are unknown
        "seconds": round(sum(note["seconds"] for note in notes.values()), 2),
        "method": episodes[0].method,
        "steps": sum(len(episode.action) for episode in episodes),
    }
