"""`eft adapt`: teach a checkpoint a new task."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.cli.options import add_command, add_encoder, add_folder, count, count_or_zero, find_task, own_folder

if TYPE_CHECKING:
    from pipeline.adapt import Settings
    from pipeline.agent import Agent
    from pipeline.data.episode import Episode
    from pipeline.merge import Merged
    from pipeline.tasks.spec import TaskSpec

DETAILS = """\
The task is learned from demonstrations (--demos), from interaction (--env-steps), or from both: first the policy is
cloned and the model learned from the demonstrations, then it goes on online, planning. Each phase ends early when the
evaluations on the way are good enough or no longer rise; what demonstrations have only harmed is put back as it was.
The checkpoint itself is not changed: what is learned is a low-rank adapter in FOLDER, with curve.svg and videos that
grow as it runs, metrics/ and summary.json.

One run at a time writes into a FOLDER, and none into one that holds an adapter.

All other numbers are those of `adapt`, `learning`, `evaluate`, `runtime` and `seed` in params.yaml. A run that was
stopped goes on where it was when the same command is given again.

    agent = Agent.from_pretrained("user/base")
    agent.add_adapter("FOLDER")

--into NEW writes a new version of the checkpoint instead, which knows the task in its own weights: all of them are
trained on the task's demonstrations (and, with --adapter, on what the adapter plays) while demonstrations of the tasks
that the checkpoint knows are rehearsed, as `adapt.pretrain` and `adapt.lr` say. It says what every task scored before
and after, by the policy alone.

examples:
  eft adapt user/base --task my_tasks/juggle.yaml --demos my_demos --env-steps 20000
  eft adapt user/base --task my_tasks/juggle.yaml --demos my_demos --env-steps 0    demonstrations alone
  eft adapt user/base --task mw-drawer-close --env-steps 20000                      interaction alone
  eft adapt user/base --task my_tasks/juggle.yaml --demos my_demos --into new_base --rehearse user/base-demos
"""


def add_to(commands: Any) -> None:
    """Declare the commands of this file."""
    adapt = add_command(commands, "adapt", adapt_to_task, "teach a checkpoint a new task, by a low-rank adapter", "")
    adapt.formatter_class, adapt.epilog = argparse.RawDescriptionHelpFormatter, DETAILS
    adapt.add_argument("checkpoint", metavar="CHECKPOINT", help="a folder, or user/name on the Hugging Face Hub")
    adapt.add_argument("--task", required=True, metavar="NAME|FILE", help="a task's name, or the file of your own task")
    adapt.add_argument(
        "--demos",
        type=Path,
        metavar="DIR",
        help="holds episodes.parquet or TASK/episodes.parquet (datasets/README.md)",
    )
    adapt.add_argument("--num-demos", type=count, metavar="N", help="use the first N demonstrations (default: all)")
    adapt.add_argument(
        "--env-steps", type=count_or_zero, metavar="N", help="steps of interaction (default: adapt.finetune.env_steps)"
    )
    adapt.add_argument(
        "--updates",
        type=count_or_zero,
        metavar="N",
        help="updates on the demonstrations alone (default: adapt.pretrain.updates)",
    )
    adapt.add_argument(
        "--adapter", type=Path, metavar="DIR", help="train on this adapter, which an earlier run wrote; or merge it"
    )
    adapt.add_argument("--into", type=Path, metavar="NEW", help="write a new checkpoint that knows the task itself")
    adapt.add_argument(
        "--rehearse", metavar="DEMOS", help="with --into: demonstrations of known tasks, a folder or a data set"
    )
    adapt.add_argument(
        "--share", type=_share, default=0.25, help="with --into: the new task's part of a batch (default: 0.25)"
    )
    add_encoder(adapt)
    adapt.add_argument("--nearest", type=count, metavar="N", help="say which N known tasks read most like this one")
    adapt.add_argument("--output", type=Path, metavar="FOLDER", help="where the adapter goes (default: adapted/TASK)")
    adapt.add_argument("--params", type=Path, metavar="FILE", help="the parameter file (default: params.yaml)")
    adapt.add_argument("--no-video", action="store_true", help="film nothing")
    adapt.add_argument("--seed", type=count_or_zero, metavar="N", help="of everything drawn (default: seed)")
    add_folder(adapt)


def adapt_to_task(options: argparse.Namespace) -> None:
    """Train an adapter for a task and write it, with curve, videos and metrics."""
    from pipeline.run.run_dir import hold_output

    settings = read_settings(options)
    spec = find_task(options.task, own_folder(options))
    if options.into is not None:
        _merge_into(options.into, options, settings, spec)
        return
    if options.rehearse is not None:
        raise ValueError("--rehearse goes with --into NEW: an adapter leaves the other tasks as they are.")
    out = options.output or Path("adapted") / spec.name
    out = out.resolve() if out.is_symlink() else out  # it may lead to where nothing is yet
    with hold_output(out, "eft adapt"):
        if (out / "adapter_config.json").exists():
            raise ValueError(
                f"{out} already holds an adapter. Choose another folder with --output, or remove that one."
            )
        _adapt_into(out, options, settings, spec)


def _adapt_into(out: Path, options: argparse.Namespace, settings: Settings, spec: TaskSpec) -> None:
    from pipeline.extras import needs

    with needs("pipeline"):
        from pipeline.adapt import adapt, introduce
    from pipeline.agent import Agent
    from pipeline.demonstrate.labels import methods_of, teachers_of
    from pipeline.files import add_files
    from pipeline.language.encoder import load_encoder
    from pipeline.learn.setup import product_modes
    from pipeline.run.launch import start
    from pipeline.run.provenance import Summary
    from pipeline.run.run_dir import open_run_dir

    demonstrations, files = read_demos(options, spec)
    methods = methods_of({spec.name: demonstrations})
    files += teachers_of([spec], settings.adapt.finetune.teacher, methods)
    ranks = start(settings.runtime, settings.seed)
    _, mode = product_modes(settings.runtime, ranks.device)
    agent = Agent.from_pretrained(options.checkpoint, device=ranks.device, mode=mode)
    if options.encoder:
        agent.encoder = load_encoder(options.encoder)
    if options.adapter:
        begun = agent.add_adapter(options.adapter, trainable=True)
        if begun != spec.name:
            raise ValueError(f"the adapter in {options.adapter} is for {begun}, not for {spec.name}.")
        files.append(options.adapter)
    embeddings = agent.embeddings.select([spec.name]) if spec.name in agent.tasks else agent.embed(spec)
    introduce(agent, spec, embeddings, demonstrations, settings.learning, settings.seed)
    nearest = agent.nearest_tasks(spec.name, options.nearest) if options.nearest else []
    for name, cosine in nearest:
        print(f"reads like {name} (cosine {cosine:.2f}): {agent.tasks[name].instructions[0]}")

    shaping = [*settings.shaping, agent.base or "", spec.to_dict(), [str(options.num_demos)]]
    watch = Watching(agent, spec, settings, out)
    try:
        with open_run_dir(f"adapt-{spec.name}", shaping, files, settings.seed) as run_dir:
            done = adapt(agent, spec, demonstrations, settings, run_dir, ranks, watch)
            with add_files(out, last="adapter_config.json") as folder:
                agent.save_adapter(folder, spec.name)
                for run in done.runs:
                    run.publish(folder / "metrics" / run.folder.name)
                Summary("adapt", done.seconds).write(folder, **done.summary(spec.name), nearest=dict(nearest))
    except KeyboardInterrupt:
        print("adapt: stopped. What was saved is kept: the same command goes on from there.", file=sys.stderr)
        raise
    before, after = (scores["plan"] for scores in (done.zero_shot, done.adapted))
    print(
        f"{spec.name}: {before['score']:.2f} zero-shot, {after['score']:.2f} ({after['low']:.2f} to "
        f"{after['high']:.2f}) adapted, in {done.seconds:.0f} s; the adapter has {done.adapter_parameters:,} "
        f"parameters, {100 * done.adapter_parameters / done.base_parameters:.1f} % of the checkpoint's\n"
        f"use it: Agent.from_pretrained({options.checkpoint!r}).add_adapter({str(out)!r})"
    )


def _merge_into(out: Path, options: argparse.Namespace, settings: Settings, spec: TaskSpec) -> None:
    from pipeline import store
    from pipeline.adapt import introduce
    from pipeline.agent import Agent
    from pipeline.data.demos import FILE
    from pipeline.language.encoder import load_encoder
    from pipeline.learn.setup import product_modes
    from pipeline.merge import merge, played, rehearsal
    from pipeline.run.launch import start
    from pipeline.run.provenance import Summary
    from pipeline.run.run_dir import hold_output, open_run_dir

    _check_merging(out, options, settings)
    demonstrations, files = read_demos(options, spec)
    ranks = start(settings.runtime, settings.seed)
    _, mode = product_modes(settings.runtime, ranks.device)
    agent = Agent.from_pretrained(options.checkpoint, device=ranks.device, mode=mode)
    base, source = agent.base or "", store.fetch(options.rehearse, None, store.DEMOS_FILES, kind="dataset").folder
    rehearsed = rehearsal(agent, source, spec.name)
    with hold_output(out, "eft adapt --into"):
        if options.adapter:
            if (begun := agent.add_adapter(options.adapter)) != spec.name:
                raise ValueError(f"the adapter in {options.adapter} is for {begun}, not for {spec.name}.")
            demonstrations = [*demonstrations, *played(agent, spec, settings.evaluate.episodes, settings.seed)]
            agent = Agent.from_pretrained(options.checkpoint, device=ranks.device, mode=mode)
            files.append(options.adapter)
        if options.encoder:
            agent.encoder = load_encoder(options.encoder)
        embeddings = agent.embeddings.select([spec.name]) if spec.name in agent.tasks else agent.embed(spec)
        introduce(agent, spec, embeddings, demonstrations, settings.learning, settings.seed)
        shaping = [*settings.shaping, base, spec.to_dict(), [str(options.num_demos), str(options.share)]]
        files += [source / name / FILE for name in rehearsed]
        with open_run_dir(f"merge-{spec.name}", shaping, files, settings.seed) as run_dir:
            done = merge(agent, spec, demonstrations, rehearsed, options.share, settings, run_dir, ranks)
            agent.save_pretrained(out)
            done.run.publish(out / "metrics")
            Summary("merge", done.run.seconds).write(
                out / "metrics", task=spec.name, base=base, rehearsed=list(rehearsed), share=options.share,
                demonstrations=len(demonstrations), before=done.before, after=done.after,
            )  # fmt: skip
    _say_merged(out, spec.name, done)


def _check_merging(out: Path, options: argparse.Namespace, settings: Settings) -> None:
    if options.rehearse is None:
        raise ValueError("--into needs --rehearse DEMOS, a folder or a data set: what is not rehearsed is forgotten.")
    if options.env_steps or options.output:
        raise ValueError(
            "--into learns from demonstrations and writes to its own folder: leave --env-steps and --output out. "
            "Interaction first: `eft adapt` without --into, then --into with --adapter FOLDER."
        )
    if options.demos is None and options.adapter is None:
        raise ValueError(
            "--into learns from demonstrations (--demos), from what an adapter plays (--adapter), or both."
        )
    if not settings.adapt.pretrain.updates:
        raise ValueError("--into makes adapt.pretrain.updates updates, and that is 0 (`--updates`).")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty. Choose another folder with --into.")


def _say_merged(out: Path, task: str, done: Merged) -> None:
    name, change = done.worst()
    before, after = (_mean([one["score"] for one in scores.values()]) for scores in (done.before, done.after))
    own = done.before[task]["score"], done.after[task]["score"]
    print(
        f"{task}: {own[0]:.2f} before, {own[1]:.2f} after; all {len(done.before)} tasks played: {before:.2f} before, "
        f"{after:.2f} after; most lost: {name}, {change:+.2f}\nthe new checkpoint: {out}"
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, not {text!r}")
    return share


def read_settings(options: argparse.Namespace) -> Settings:
    """Read params.yaml and put what the options say in its place."""
    from pipeline import config
    from pipeline.extras import needs

    with needs("pipeline"):
        from pipeline.adapt import Settings

    path = options.params or config.PARAMS
    settings = Settings(
        config.load(config.Adapt, path),
        config.load(config.Learning, path),
        config.load(config.Evaluate, path),
        config.load(config.Runtime, path),
        config.load_seed(path) if options.seed is None else options.seed,
    )
    adapt = settings.adapt
    if options.env_steps is not None:
        adapt = dataclasses.replace(adapt, finetune=dataclasses.replace(adapt.finetune, env_steps=options.env_steps))
    if options.updates is not None:
        adapt = dataclasses.replace(adapt, pretrain=dataclasses.replace(adapt.pretrain, updates=options.updates))
    evaluate = dataclasses.replace(settings.evaluate, video_size=0) if options.no_video else settings.evaluate
    return dataclasses.replace(settings, adapt=adapt, evaluate=evaluate)


def read_demos(options: argparse.Namespace, spec: TaskSpec) -> tuple[list[Episode], list[Path]]:
    """Return the demonstrations of the task, and the file they are in."""
    from pipeline.data.demos import FILE, read_episodes

    if options.demos is None:
        return [], []
    places = [options.demos / FILE, options.demos / spec.name / FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise ValueError(f"no demonstrations of {spec.name}: neither {places[0]} nor {places[1]} is there.")
    episodes = read_episodes(path, "what recorded it")
    if options.num_demos and options.num_demos > len(episodes):
        raise ValueError(f"{path} holds {len(episodes)} demonstrations, --num-demos asks for {options.num_demos}.")
    return episodes[: options.num_demos], [path]


class Watching:
    """Draws the curve after every evaluation, and films after every phase, while the adaptation goes on."""

    def __init__(self, agent: Agent, spec: TaskSpec, settings: Settings, out: Path):
        self._agent, self._spec, self._settings, self._out = agent, spec, settings, out

    def __call__(self, event: str, curve: list[dict[str, float]]) -> None:
        """Show what has just happened."""
        from pipeline.adapt import film
        from pipeline.files import atomic_file
        from pipeline.report.charts import FINETUNED, Line, as_file, line_chart

        x, y = [point["seconds"] for point in curve], [point["score"] for point in curve]
        chart = line_chart(f"{self._spec.name}: score against seconds", "seconds", [Line(x, y, FINETUNED)])
        with atomic_file(self._out / "curve.svg") as partial:
            partial.write_text(as_file(chart), encoding="utf-8")
        if event != "evaluated":
            film(self._agent, self._spec, self._settings, self._out / "videos" / f"{event}.mp4")
