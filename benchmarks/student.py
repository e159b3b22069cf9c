"""One student of many tasks: what it reaches by its experts' labels in the states that its own actions lead to.

    python -m benchmarks.student dmc                  the DMControl tasks that have a teacher coming with Eft
    python -m benchmarks.student mt50 --seeds 1 2 3   Meta-World's 49 tasks by their scripts; two students a seed

dmc: a model of the default size clones demonstrations, then learns online with `finetune.teacher: label`. Its score by
the policy alone stands beside the teachers' own. Tasks without a teacher, or with one that a planner outdoes, are left
out and listed.

mt50: of two students, one has D demonstrations a task and then E own, labelled episodes of each, the other D + E
demonstrations; both are updated equally often. They play the same episodes in the end.

Each student is a copy of the project in .resume/student/, in which the stages themselves run. Its folder is named by
its parameters, its code and its teachers: with the same ones, the same command goes on where it stopped, and a stage or
an evaluation that is done is not run again. Adds its claims to results/teachers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ruamel.yaml import YAML

from benchmarks import results
from benchmarks.system_runs import merge, read_yaml
from pipeline import config
from pipeline.agent import Agent
from pipeline.demonstrate.experts import expert_kind
from pipeline.demonstrate.teach import load_recipes
from pipeline.demonstrate.teach_tasks import Lesson
from pipeline.demonstrate.teacher import SHIPPED, load_teacher, teacher_file
from pipeline.files import read_json, write_json
from pipeline.learn.evaluator import Evaluator
from pipeline.run.provenance import commit
from pipeline.run.run_dir import fingerprint
from pipeline.statistics import Estimate, bootstrap_mean, bootstrap_runs
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import Step, VectorEnv

ROOT = Path(__file__).parent.parent
COPIES = Path(".resume/student")
SETUP = Path(__file__).with_name("student.yaml")
ENOUGH = 0.9  # of the teachers' mean score
CONFIDENCE, BOOTSTRAP_SAMPLES = 0.95, 2000
_COPIED = ("pipeline", "stages", "my_tasks", "presets")
_COMMAND = "python -m benchmarks.student"
_EVALUATION_SEED = 100  # added to the run's, as in stages/evaluate.py


class Played(NamedTuple):
    """What the policy alone reached, per task and episode, in the order of the episodes' seeds."""

    scores: dict[str, list[float]]
    ever: dict[str, list[float]]  # 1 where an episode was successful at any of its steps

    @property
    def mean(self) -> float:
        """Mean score over tasks."""
        return mean_of(self.scores)


def mean_of(values: Mapping[str, Sequence[float]]) -> float:
    """Return the mean over tasks of the mean over episodes."""
    return float(np.mean([np.mean(one) for one in values.values()]))


class Watched(VectorEnv):
    """Environments that note of each finished episode whether any of its steps was successful.

    Attributes:
        ever: for each environment, 0 or 1 of each of its episodes.
    """

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.ever: list[list[float]] = [[] for _ in self.specs]
        self._so_far = np.zeros(len(self.specs), dtype=bool)

    def end_step(self) -> Step:
        """Wait for the step that was begun and return what it gave."""
        step = super().end_step()
        self._so_far |= step.success
        ended = step.terminated | step.truncated
        for number in np.flatnonzero(ended):
            self.ever[number].append(float(self._so_far[number]))
        self._so_far[ended | step.lost] = False
        return step


# --- one student ------------------------------------------------------------------------------------------------------


def parameters(tasks: Sequence[str], seed: int, *changed: Mapping[str, Any]) -> dict[str, Any]:
    """Return every parameter of a student: the default run's, with `changed` laid over them one after the other.

    Raises:
        ValueError: an unknown parameter or an impossible value.
    """
    own = {"seed": seed, "tasks": {"train": list(tasks), "held_out": [], "pairs": []}}
    found = merge(read_yaml(ROOT / "presets/quickstart.yaml"), own, *changed)
    for name, section in config.SECTIONS.items():
        config.parse(section, found[name], f"the student: {name}")
    return found


@dataclass(frozen=True)
class Student:
    """A copy of the project in which one student learns.

    Args:
        name: what its folder's name begins with.
        params: every parameter.
        processes: that share each update and the environments.
    """

    name: str
    params: dict[str, Any]
    processes: int

    @cached_property
    def folder(self) -> Path:
        """Where it is; found once, so that code may change while it learns from the code that was copied."""
        inside = (path for name in _COPIED for path in sorted((ROOT / name).rglob("*")) if path.is_file())
        code = [path for path in inside if "__pycache__" not in path.parts]
        settings = json.dumps([self.params, self.processes], sort_keys=True)
        return COPIES / f"{self.name}-{fingerprint([settings], code, self.params['seed'])}"

    def train(self, stages: Sequence[str]) -> dict[str, float]:
        """Run the stages that are not done; return minutes of wall time of each, all tries together."""
        folder = self.folder
        if not (folder / "begun.json").exists():
            self._prepare(folder)
        return {stage: self._run(stage, folder) / 60 for stage in stages}

    @property
    def begun(self) -> str:
        """The commit that its code is of."""
        return read_json(self.folder / "begun.json", _COMMAND)["commit"]

    def play(self, checkpoint: str, episodes: int) -> Played:
        """Play so many episodes of every task by the policy alone, unless that is done.

        Args:
            checkpoint: `pretrain` or `finetune`.
            episodes: per task, the same ones for every student of this seed.
        """
        folder = self.folder
        noted = folder / f"{checkpoint}-{episodes}.json"
        if not noted.exists():
            played = play(folder / f"checkpoints/{checkpoint}/model", self.params, episodes)
            write_json(noted, played._asdict())
        return Played(**read_json(noted, _COMMAND))

    def demonstrations(self) -> dict[str, Any]:
        """Return what the stage demos wrote of them."""
        return read_json(self.folder / "datasets/demos.json", _COMMAND)

    def updates(self) -> int:
        """Return how many updates it made, in all its stages."""
        paths = (self.folder / f"checkpoints/{stage}/metrics/summary.json" for stage in ("pretrain", "finetune"))
        return sum(read_json(path, _COMMAND)["updates"] for path in paths if path.exists())

    def _prepare(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        for name in _COPIED:
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        with (folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML(typ="safe", pure=True).dump(self.params, file)
        write_json(folder / "begun.json", {"commit": commit()})

    def _run(self, stage: str, folder: Path) -> float:
        """Run a stage, unless it is done; return its seconds."""
        noted, clock = folder / f"{stage}.json", folder / f"{stage}.seconds.json"
        if noted.exists():
            return read_json(noted, _COMMAND)
        before, started = read_json(clock, _COMMAND) if clock.exists() else 0.0, time.monotonic()
        print(f"> {self.name}: {stage}", flush=True)
        try:
            execute(stage, folder, self.processes if stage in ("pretrain", "finetune") else 1)
        finally:
            seconds = round(before + time.monotonic() - started, 1)
            write_json(clock, seconds)
        write_json(noted, seconds)
        return seconds


def execute(stage: str, folder: Path, processes: int) -> None:
    """Run a stage in a copy of the project, as so many processes.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | {"PYTHONPATH": str(folder.resolve()), "OMP_NUM_THREADS": "1"}
    if processes > 1:
        launcher = f"{sys.executable} -m torch.distributed.run --standalone"
        environment["EFT_LAUNCH"] = f"{launcher} --nproc-per-node {processes}"
    code = subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=environment).returncode
    if code:
        sys.exit(f"{folder}: stages.{stage} failed with exit code {code}")


def play(model: Path, params: Mapping[str, Any], episodes: int) -> Played:
    """Play every task by the policy of a checkpoint alone, the simulators in `evaluate.processes` processes."""
    torch.set_num_threads(1)
    agent, seed = Agent.from_pretrained(model), params["seed"]
    actor, sizes = agent.conditioned(params["evaluate"]["phrasing"]), agent.model.config
    specs = registry.get(params["tasks"]["train"])
    names = [spec.name for spec in specs]
    made: list[Watched] = []

    def watched(*arguments: Any, **options: Any) -> VectorEnv:
        made.append(Watched(*arguments, **options))
        return made[-1]

    widths, workers = (sizes.obs_dim, sizes.action_dim), params["evaluate"]["processes"]
    with Evaluator(specs, episodes, *widths, seed + _EVALUATION_SEED, workers, make_envs=watched) as evaluator:
        found = evaluator.run(actor, names, False, f"the policy alone: {model}", seed)
    ever: dict[str, list[float]] = {name: [] for name in names}
    for envs in made:
        rounds = max(map(len, envs.ever))
        for number in range(rounds):  # in the order of `scores`: by round, then by environment
            for spec, one in zip(envs.specs, envs.ever, strict=True):
                if number < len(one) and len(ever[spec.name]) < episodes:
                    ever[spec.name].append(one[number])
    return Played({name: result.scores for name, result in zip(names, found, strict=True)}, ever)


# --- DeepMind Control -------------------------------------------------------------------------------------------------


def taught(specs: Sequence[TaskSpec], seed: int) -> dict[str, float]:
    """Return the scores of the teachers that come with Eft, of those tasks that one of today's recipe demonstrates."""
    recipes, scores = load_recipes(), {}
    for spec in specs:
        known = spec.name in recipes and Lesson(spec, recipes[spec.name], seed).is_taught(SHIPPED, any_seed=True)
        if known and expert_kind(spec, SHIPPED) == "teacher":
            scores[spec.name] = load_teacher(teacher_file(SHIPPED, spec), spec).notes["score"]
    return scores


def dmc(seed: int, processes: int, setup: Mapping[str, Any]) -> None:
    """Train the student of the DMControl tasks, and put its score beside the teachers'.

    Args:
        seed: of all.
        processes: that share each update and the environments.
        setup: `tasks`; `episodes` of each in the end; `own`, the labelled episodes of each task; `seeding`, how many
            of these are played before any update; `updates`, how many are made while the others are played;
            `changed`, parameters that are not the default run's.
    """
    started = time.monotonic()
    wanted = registry.get(setup["tasks"])
    teachers = taught(wanted, seed)
    left_out = [spec.name for spec in wanted if spec.name not in teachers]
    if left_out:
        print(f"dmc: no teacher, left out: {', '.join(left_out)}", flush=True)
    if not teachers:
        sys.exit("dmc: no task has a teacher: `python -m benchmarks.teachers teach --suite dmcontrol` trains them")
    specs = registry.get(list(teachers))
    online = own_episodes(specs, setup["own"], setup["updates"], setup["seeding"])
    params = parameters(list(teachers), seed, setup["changed"], {"teach": {"shipped": True}, "finetune": online})
    student = Student(f"dmc-{seed}", params, processes)
    minutes = student.train(("teach", "demos", "embed", "pretrain", "finetune"))
    cloned, labelled = (student.play(name, setup["episodes"]) for name in ("pretrain", "finetune"))
    mean = float(np.mean(list(teachers.values())))
    results.add(
        "teachers",
        "student.dmc",
        command("dmc", seed=seed, processes=processes),
        time.monotonic() - started,
        {
            "share_of_teachers": results.claim(round(labelled.mean / mean, 4), ENOUGH, "above"),
            "labels_minus_cloning": results.claim(round(labelled.mean - cloned.mean, 4), 0, "above"),
        },
        commit=student.begun,
        seed=seed,
        processes=processes,
        scores={"teachers": round(mean, 4), "cloned": estimate(cloned), "labelled": estimate(labelled)},
        tasks={
            name: {
                "teacher": round(score, 4),
                "cloned": round(float(np.mean(cloned.scores[name])), 4),
                "labelled": round(float(np.mean(labelled.scores[name])), 4),
            }
            for name, score in teachers.items()
        },
        episodes=setup["episodes"],
        own_episodes=setup["own"],
        updates=student.updates(),
        minutes={stage: round(one, 1) for stage, one in minutes.items()},
        without_teacher=left_out,
        short_of_demonstrations=student.demonstrations()["missing"],
    )


def own_episodes(specs: Sequence[TaskSpec], episodes: int, updates: int, seeding: int = 1) -> dict[str, Any]:
    """Return the parameters of a finetuning in which every task plays so many labelled episodes.

    The first `seeding` of each are played before anything is updated; the updates are spread over the others.
    """
    longest = max(spec.episode_length for spec in specs)
    steps = len(specs) * longest
    return {
        "teacher": "label",
        "env_steps": steps * episodes,
        "utd": (updates + 0.5) / (steps * (episodes - seeding)),
        "seeding_episodes": seeding,
        "constraint_steps": steps * episodes,
        "replay_capacity": steps * (episodes + 1),
        "save_every": max(steps * episodes // 8, 1),
        "log_every": max(steps * episodes // 40, 1),
        "eval_every": steps * episodes,
    }


def estimate(played: Played) -> dict[str, float]:
    """Return the mean score over tasks with its interval over episodes."""
    rng = np.random.default_rng(0)
    return rounded(bootstrap_mean(list(played.scores.values()), CONFIDENCE, BOOTSTRAP_SAMPLES, rng))


def rounded(found: Estimate) -> dict[str, float]:
    """Return an estimate for JSON."""
    return {name: round(value, 4) for name, value in found._asdict().items()}


# --- Meta-World -------------------------------------------------------------------------------------------------------

ARMS = ("labels", "demonstrations")


def arm(name: str, seed: int, processes: int, setup: Mapping[str, Any]) -> tuple[Student, tuple[str, ...]]:
    """Return a student of Meta-World and the stages it learns in; see `mt50` for the arguments."""
    specs, demos = registry.get(setup["tasks"]), setup["demonstrations"]
    changed = [setup["changed"], {"teach": {"enabled": False}}]
    if name == "labels":
        changed += [{"demos": {"episodes": demos}}]
        changed += [{"finetune": own_episodes(specs, setup["own"], setup["updates"], setup["seeding"])}]
        stages = ("demos", "embed", "pretrain", "finetune")
    else:
        updates = setup["changed"]["pretrain"]["updates"] + setup["updates"]
        changed += [{"demos": {"episodes": demos + setup["own"]}, "pretrain": {"updates": updates}}]
        stages = ("demos", "embed", "pretrain")
    params = parameters([spec.name for spec in specs], seed, *changed)
    return Student(f"mt50-{name}-{seed}", params, processes), stages


def mt50(seeds: Sequence[int], processes: int, setup: Mapping[str, Any]) -> None:
    """Train both students of Meta-World with each seed, and compare their success.

    Args:
        seeds: one run of each student for each.
        processes: that share each update and the environments.
        setup: `tasks`; `episodes` of each in the end; `demonstrations` of each task; `own`, labelled episodes of each
            task in place of as many further demonstrations; `seeding` and `updates` as for `dmc`;
            `changed`, parameters that are not the default run's.
    """
    started = time.monotonic()
    runs: dict[str, list[Played]] = {name: [] for name in ARMS}
    about: list[dict[str, Any]] = []
    commits: set[str] = set()
    for seed in seeds:
        for name in ARMS:
            student, stages = arm(name, seed, processes, setup)
            minutes = student.train(stages)
            played = student.play(stages[-1], setup["episodes"])
            runs[name].append(played)
            commits.add(student.begun)
            about.append(
                {
                    "arm": name,
                    "seed": seed,
                    "success": round(played.mean, 4),
                    "success_at_any_step": round(mean_of(played.ever), 4),
                    "updates": student.updates(),
                    "demonstrations": sum(one["kept"] for one in student.demonstrations()["tasks"].values()),
                    "short_of_demonstrations": sorted(student.demonstrations()["missing"]),
                    "minutes": {stage: round(one, 1) for stage, one in minutes.items()},
                }
            )
            print(f"mt50: {name}, seed {seed}: success {played.mean:.3f}", flush=True)
    last = compared(runs, "scores")
    results.add(
        "teachers",
        "student.mt50",
        command("mt50", seeds=seeds, processes=processes),
        time.monotonic() - started,
        {"labels_minus_demonstrations": results.claim(last["labels_minus_demonstrations"]["score"], 0, "above")},
        commit=", ".join(sorted(commits)),
        seeds=list(seeds),
        processes=processes,
        episodes=setup["episodes"],
        demonstrations=setup["demonstrations"],
        own_episodes=setup["own"],
        success=last,
        success_at_any_step=compared(runs, "ever"),
        tasks={
            task: {name: round(float(np.mean([one.scores[task] for one in runs[name]])), 3) for name in ARMS}
            for task in runs[ARMS[0]][0].scores
        },
        runs=about,
    )


def compared(runs: Mapping[str, Sequence[Played]], what: str) -> dict[str, dict[str, float]]:
    """Return the mean of both students and their difference, with intervals over seeds and episodes.

    Students of one seed have played the same episodes, so their difference is taken episode by episode.
    """
    tables = {name: [list(getattr(one, what).values()) for one in played] for name, played in runs.items()}
    pairs = zip(*(tables[name] for name in ARMS), strict=True)
    tables["labels_minus_demonstrations"] = [
        [np.subtract(a, b).tolist() for a, b in zip(labels, others, strict=True)] for labels, others in pairs
    ]
    return {
        name: rounded(bootstrap_runs(table, CONFIDENCE, BOOTSTRAP_SAMPLES, np.random.default_rng(0)))
        for name, table in tables.items()
    }


# --- the command ------------------------------------------------------------------------------------------------------


def read_setup(part: str) -> dict[str, Any]:
    """Return the set-up of a part by student.yaml, with the tasks of its preset."""
    content = read_yaml(SETUP)
    own = content[part]
    tasks = read_yaml(ROOT / f"presets/{part}.yaml")["tasks"]["train"]
    return {**own, "tasks": tasks, "changed": merge(content["common"], own["changed"])}


def command(part: str, **options: Any) -> str:
    """Return the command with these options."""
    words = [_COMMAND, part]
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
    return " ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train students and add their claims to results/teachers.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name in ("dmc", "mt50"):
        part = parts.add_parser(name)
        part.add_argument("--processes", type=int, default=2, help="that learn together, one a core (default: 2)")
        if name == "dmc":
            part.add_argument("--seed", type=int, default=1, help="default: 1")
        else:
            part.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="default: 1 2 3")
    options = parser.parse_args(arguments)
    if options.part == "dmc":
        dmc(options.seed, options.processes, read_setup("dmc"))
    else:
        mt50(options.seeds, options.processes, read_setup("mt50"))


if __name__ == "__main__":
    main()
