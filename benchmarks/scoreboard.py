"""A checkpoint of many tasks beside what others have published of the same tasks.

    python -m benchmarks.scoreboard play labels checkpoints/base          the policy alone, 20 episodes of every task
    python -m benchmarks.scoreboard play plans checkpoints/base --plan    the same starts by plans
    python -m benchmarks.scoreboard page                                  docs/scoreboard.md from results/base.json
    python -m benchmarks.scoreboard ship labels MODEL params.yaml checkpoints/base    with its card and scores

The first word after `play` names the way the checkpoint was made: `demonstrations`, `labels`, `rl` or `plans`. Tasks
are played in pieces and kept in .resume/scoreboard/, so the same command goes on where it stopped. Adds scores,
intervals and claims to results/base.json.

What is compared: tasks whose definition is the simulator's own. The others (`OURS`) are our own tasks on the same
bodies under MMBench's names; they count in our means and in no comparison. Meta-World is version 3, and success is
that of an episode's last step.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCardData

from benchmarks import results
from benchmarks.probe import played
from pipeline.agent import Agent
from pipeline.files import read_json, sha256, write_json
from pipeline.model.task_table import POLICY
from pipeline.statistics import bootstrap_mean
from pipeline.tasks import registry
from pipeline.tasks.spec import TaskSpec

COMMAND = "python -m benchmarks.scoreboard"
WORK = Path(".resume/scoreboard")
PUBLISHED = Path(__file__).with_name("published_mmbench.csv")
PAGE = Path(__file__).parent.parent / "docs/scoreboard.md"
WAYS = {
    "demonstrations": "cloned from demonstrations of scripts, teachers and planners on the simulator",
    "labels": "the same, and labels of scripts and teachers in the states that it came to",
    "rl": "the same, and its own rewards",
    "plans": "the model of the way before, acting by plans",
}
THEIRS = {
    "newt_100M": "one model, demonstrations of 200 trained agents, 100M steps of all tasks together",
    "newt_pretrained_only": "one model, the same demonstrations alone",
    "bc_single": "one model a task, cloned from the same demonstrations",
    "tdmpc2_multitask_100M": "one model, rewards alone, 100M steps of all tasks together",
    "fasttd3_100M": "one model, rewards alone, 100M steps of all tasks together",
    "ppo_100M": "one model, rewards alone, 100M steps of all tasks together",
    "tdmpc2_single_500k": "one model a task, rewards alone, 500k steps each",
    "tdmpc2_single_5M": "one model a task, rewards alone, 5M steps each",
}
OURS = ("dmcontrol-ext", "box2d", "ogbench", "robodesk", "miniarcade")  # suites whose tasks are our own
DOMAINS = {"miniarcade": "pygame"}  # MMBench's name of a suite, where it is another
PROMISED = {"metaworld": 0.95, "dmcontrol": 0.72}  # mean score over the tasks of a suite
PROMISED_ALL, PROMISED_TASKS = 0.65, 150
OF_ALL = "bc_single"  # a method with a score of each of MMBench's training tasks
MOST_MB = 30  # of the checkpoint in Git
TOGETHER = 8  # tasks played at once, so that few simulators are open
CONFIDENCE, SAMPLES = 0.95, 2000


def play(way: str, model: str, episodes: int, seed: int, plan: bool, names: Sequence[str]) -> None:
    """Play every task of a checkpoint that was not played yet, and add what came to results/base.json."""
    started = time.monotonic()
    torch.set_num_threads(1)
    agent = Agent.from_pretrained(model)
    specs = [spec for name, spec in agent.tasks.items() if not names or name in names]
    assert agent.base is not None, "a checkpoint that was loaded knows its weights' hash"
    folder = WORK / f"{way}-{agent.base[:16]}-{episodes}-{seed}"
    open_ones = [spec for spec in specs if not (folder / f"{spec.name}.json").exists()]
    for first in range(0, len(open_ones), TOGETHER):
        piece = open_ones[first : first + TOGETHER]
        for name, (scores, returns) in played(agent, piece, episodes, seed, plan).items():
            write_json(folder / f"{name}.json", {"scores": scores, "returns": returns})
        print(f"{way}: {first + len(piece)} of {len(open_ones)} tasks", flush=True)
    found = {spec.name: read_json(folder / f"{spec.name}.json", COMMAND)["scores"] for spec in specs}
    words = [COMMAND, "play", way, model, "--episodes", str(episodes), "--seed", str(seed)] + ["--plan"] * plan
    suites = by_suite(specs)
    claims = claimed(found, suites, whole=not names)
    results.add(
        "base", way, " ".join(words), time.monotonic() - started, claims,
        data=WAYS[way], weights=agent.base, episodes=episodes, seed=seed,
        all=estimate(list(found.values())),
        suites={suite: estimate([found[name] for name in tasks]) for suite, tasks in suites.items()},
        tasks={name: estimate([scores]) for name, scores in found.items()},
    )  # fmt: skip


def by_suite(specs: Sequence[TaskSpec]) -> dict[str, list[str]]:
    """Return the names of the tasks of each suite."""
    suites: dict[str, list[str]] = {}
    for spec in specs:
        suites.setdefault(spec.suite, []).append(spec.name)
    return suites


def claimed(found: Mapping[str, Sequence[float]], suites: Mapping[str, Sequence[str]], whole: bool) -> dict[str, Any]:
    """Return the promised figures; none where only some tasks were played."""
    if not whole:
        return {}
    means = {name: float(np.mean(scores)) for name, scores in found.items()}
    claims = {
        suite: results.claim(round(float(np.mean([means[name] for name in suites[suite]])), 4), target, "above")
        for suite, target in PROMISED.items()
        if suite in suites
    }
    claims["tasks"] = results.claim(len(means), PROMISED_TASKS, "above")
    claims["all"] = results.claim(round(float(np.mean(list(means.values()))), 4), PROMISED_ALL, "above")
    return claims


def estimate(strata: Sequence[Sequence[float]]) -> list[float]:
    """Return mean, low and high of scores by task."""
    found = bootstrap_mean(strata, CONFIDENCE, SAMPLES, np.random.default_rng(0))
    return [round(value, 4) for value in found]


# --- the page ---------------------------------------------------------------------------------------------------------


def published() -> dict[str, dict[str, float]]:
    """Return published scores by method and task."""
    lines = [line for line in PUBLISHED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    found: dict[str, dict[str, float]] = {}
    for row in csv.DictReader(lines):
        if row["level"] != "all":
            found.setdefault(row["method"], {})[row["name"]] = float(row["score"])
    return found


def page(content: Mapping[str, Any], suites: Mapping[str, Sequence[str]], theirs: Mapping[str, Any]) -> str:
    """Return the page: what was asked of whom, domains, then tasks."""
    ways = {way: content["parts"][way] for way in WAYS if way in content["parts"]}
    methods = [name for name in THEIRS if name in theirs]
    lines = ["# Scoreboard", "", *about(ways, methods), "", "## Domains", ""]
    lines += table(["domain", "tasks", *ways, *methods])
    for suite, tasks in suites.items():
        mark = " (ours)" if suite in OURS else ""
        own = [cell(part["suites"].get(suite)) for part in ways.values()]
        whole = is_whole(suite, tasks, theirs)
        others = ["" if suite in OURS else number(domain_score(theirs[name], suite, tasks, whole)) for name in methods]
        lines.append(row([suite + mark, str(len(tasks)), *own, *others]))
    lines.append(row(["all", str(sum(map(len, suites.values()))), *(cell(part["all"]) for part in ways.values())]))
    singles = [name for name in methods if "single" in name]
    lines += ["", "## Tasks", "", *table(["task", *ways, *singles])]
    for suite, tasks in suites.items():
        for task in tasks:
            others = ["" if suite in OURS else number(theirs[name].get(task)) for name in singles]
            lines.append(row([task, *(cell(part["tasks"].get(task)) for part in ways.values()), *others]))
    return "\n".join(lines) + "\n"


def about(ways: Mapping[str, Any], methods: Sequence[str]) -> list[str]:
    """Return what each column is, by which data and which command."""
    lines = [
        "Mean scores from 0 to 1, with 95 % intervals over episodes. Meta-World: version 3, success at the last step."
    ]
    lines += [
        "Suites marked `ours` hold tasks of our own on the same bodies, so nothing published stands beside them.",
        "A published score stands beside the same tasks alone: who says only a domain's mean, beside the whole domain.",
        "",
    ]
    lines += table(["column", "learned from", "by"])
    lines += [
        row([way, part["data"], f"`{part['command']}`, {part['commit'][:8]}, {machine(part)}"])
        for way, part in ways.items()
    ]
    return lines + [row([name, THEIRS[name], "published (Newt, arXiv 2511.19584)"]) for name in methods]


def machine(part: Mapping[str, Any]) -> str:
    """Return in words where a part was played."""
    return f"{part['machine']['cores']} cores of an {part['machine']['gpu'] or part['machine']['cpu']}"


def domain_score(scores: Mapping[str, float], suite: str, tasks: Sequence[str], whole: bool) -> float | None:
    """Return a published score of the same tasks: their mean where each has one, the domain's if they are all of it."""
    known = [scores[task] for task in tasks if task in scores]
    if len(known) == len(tasks):
        return float(np.mean(known))
    return scores.get(DOMAINS.get(suite, suite)) if whole else None


def is_whole(suite: str, tasks: Sequence[str], theirs: Mapping[str, Any]) -> bool:
    """Return whether these are all tasks of MMBench's domain."""
    domain = {spec.name for spec in registry.load_catalogue().values() if spec.suite == suite} & set(theirs[OF_ALL])
    return domain <= set(tasks)


def table(names: Sequence[str]) -> list[str]:
    """Return the head of a table."""
    return [row(names), "|" + "---|" * len(names)]


def row(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cells) + " |"


def cell(found: Sequence[float] | None) -> str:
    """Return a mean and its interval."""
    return "" if found is None else f"{found[0]:.2f} ({found[1]:.2f}–{found[2]:.2f})"


def number(value: float | None) -> str:
    """Return a published score."""
    return "" if value is None else f"{value:.2f}"


# --- the checkpoint that comes with Eft -------------------------------------------------------------------------------


def ship(part: Mapping[str, Any], way: str, model: str, params: Path, folder: Path) -> None:
    """Write a checkpoint with a card, the parameters that it was trained by, and scores for `eft info`.

    Raises:
        ValueError: the scores are of other weights, or the folder would be larger than is promised.
    """
    agent = Agent.from_pretrained(model)
    if agent.base != part["weights"]:
        raise ValueError(
            f"results/base.json has scores of the weights {part['weights'][:16]}, {model} has {str(agent.base)[:16]}: "
            f"play it first, `{COMMAND} play {way} {model}`."
        )
    agent.table.constraint.fill_(POLICY)  # it acts as what was played, unless it is asked to plan elsewhere
    agent.save_pretrained(folder)
    scores = {name: dict(zip(("score", "low", "high"), found, strict=True)) for name, found in part["tasks"].items()}
    written = {
        "models": {"finetune": {"policy": scores}},
        "weights": {"finetune": sha256(folder / "model.safetensors")},
    }
    write_json(folder / "metrics.json", {"scores": written})
    shutil.copyfile(params, folder / "params.yaml")
    (folder / "README.md").write_text(card(part, way, agent), encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    if size > MOST_MB:
        raise ValueError(f"{folder} has {size:.1f} MiB, more than {MOST_MB}")
    print(f"-> {folder}, {size:.1f} MiB")


def card(part: Mapping[str, Any], way: str, agent: Agent) -> str:
    """Return the card: what it is, how to use it, what it scores."""
    suites = by_suite(list(agent.tasks.values()))
    data = ModelCardData(
        license="mit", library_name="eft", pipeline_tag="reinforcement-learning",
        tags=["reinforcement-learning", "robotics", "world-model", "language-conditioned"],
    )  # fmt: skip
    weights = sum(weight.numel() for name, weight in agent.model.named_parameters() if not name.startswith("target_"))
    size = f"{len(agent.tasks)} tasks in {len(suites)} domains, {weights / 1e6:.1f} million weights"
    by = f"`{part['command']}`, {part['commit'][:8]}, {machine(part)}"
    lines = [
        "---", data.to_yaml(), "---", "", "# Eft's base", "",
        f"One language-conditioned world model of {size},", f"{WAYS[way]}.", "",
        "```python", "import eft", "", 'agent = eft.Agent.from_pretrained("checkpoints/base")',
        'env = eft.make("mw-door-open")', "obs, _ = env.reset(seed=0)", "agent.reset()",
        'action = agent.act(obs, instruction="open the door")', "```", "",
        f"The policy alone, {part['episodes']} episodes of each task ({by}); scores from 0 to 1",
        "by each task's own rule, 95 % intervals over episodes. Meta-World: version 3, success at the last step.",
        "`params.yaml` beside this file is what it was trained by.", "",
        *table(["domain", "tasks", "score"]),
        *(row([suite, str(len(tasks)), cell(part["suites"][suite])]) for suite, tasks in suites.items()),
        row(["all", str(len(agent.tasks)), cell(part["all"])]), "",
        *table(["task", "score", "one of its texts"]),
        *(row([name, cell(part["tasks"][name]), spec.instructions[0]]) for name, spec in agent.tasks.items()),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    playing = parts.add_parser("play", help="play the tasks of a checkpoint")
    playing.add_argument("way", choices=WAYS)
    playing.add_argument("model", help="a folder, or user/name on the Hub")
    playing.add_argument("--episodes", type=int, default=20, help="of each task (default: 20)")
    playing.add_argument("--seed", type=int, default=1, help="default: 1")
    playing.add_argument("--plan", action="store_true", help="by plans on every task, else by the policy alone")
    playing.add_argument("--tasks", nargs="+", default=[], help="only these; no claims then")
    parts.add_parser("page", help="write docs/scoreboard.md")
    shipping = parts.add_parser("ship", help="write a checkpoint with its card and scores")
    shipping.add_argument("way", choices=WAYS, help="whose scores")
    shipping.add_argument("model", help="a folder, or user/name on the Hub")
    shipping.add_argument("params", type=Path, help="the params.yaml that it was trained by")
    shipping.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    if options.part == "play":
        play(options.way, options.model, options.episodes, options.seed, options.plan, options.tasks)
        return
    content = read_json(results.RESULTS / "base.json", COMMAND)
    if options.part == "ship":
        ship(content["parts"][options.way], options.way, options.model, options.params, options.folder)
        return
    played_tasks = [name for part in content["parts"].values() for name in part.get("tasks", {})]
    suites = by_suite(registry.get(list(dict.fromkeys(played_tasks))))
    PAGE.write_text(page(content, suites, published()), encoding="utf-8")
    print(f"-> {PAGE}")


if __name__ == "__main__":
    main()
