"""The two loops of training: on demonstrations alone, and online. What they do alike is in `loop.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pipeline import config
from pipeline.learn.replay import ReplayBuffer, sample_mixture
from pipeline.model.actor import Actor
from pipeline.progress import Progress
from pipeline.shapes import Batch
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv
from pipeline.train.clustering import Clusterer
from pipeline.train.constraint import Evidence, Schedule, make_constraint
from pipeline.train.curriculum import Curriculum
from pipeline.train.interrupt import Interrupt
from pipeline.train.loop import RANK_SEEDS, Loop, due
from pipeline.train.policy_phase import PolicyPhase
from pipeline.train.ranks import Ranks
from pipeline.train.rollout import Collector, Finished, deal_episodes, deal_state
from pipeline.train.schedules import cooldown

_CONSTRAINT = "constraint."  # before the names of what the constraint's rule saves
_PHASE = "policy_phase."  # before those of the policy phase


def learn_offline(
    loop: Loop,
    settings: config.Pretrain,
    sample: Callable[[int, torch.Generator], Batch],
    specs: Sequence[TaskSpec],
    clusterer: Clusterer | None = None,
) -> None:
    """Learn from demonstrations alone, up to `settings.updates` or until the loop stops early.

    Args:
        loop: what is updated, saved and logged.
        settings: sizes and intervals.
        sample: draws a batch of a given size from the demonstrations.
        specs: the tasks evaluated.
        clusterer: clusters the tasks; None where the model has no clusters.
    """
    ranks, total = loop.ranks, settings.updates
    share = ranks.shares(settings.batch_size, [1] * ranks.count)[ranks.rank]
    if clusterer and loop.resumed:
        clusterer.load_state(loop.resumed.values["clusterer"])

    def save() -> None:
        loop.save(values={"clusterer": clusterer.state()} if clusterer else None)

    with (
        Interrupt(loop.runtime.stop_seconds) as interrupt,
        Progress(loop.label, total, "updates", loop.position, quiet=not ranks.is_main) as progress,
    ):
        if loop.owes_evaluation and not loop.evaluate(specs, progress, interrupt):
            interrupt.leave()
        while loop.position < total and not loop.stopped:
            if clusterer and clusterer.due:
                with loop.clock.phase("cluster"):
                    found = clusterer.look(share)
                if found:
                    progress.write(f"{loop.label}: {found.describe()}")
            with loop.clock.phase("sample"):
                batch = sample(share, loop.generator)
            loop.learner.lr_scale = cooldown(loop.position, total, settings.cooldown)
            loop.update(batch, "pretrain")
            loop.position += 1
            progress.update(1)
            (stop,) = ranks.any(interrupt.requested is not None)
            loop.settle(loop.position - 1, total, settings, specs, progress, interrupt, save, stop=stop)


def own_environments(ranks: Ranks, env_specs: Sequence[TaskSpec]) -> list[int]:
    """Return the numbers of the environments of this rank.

    Raises:
        ValueError: there are more ranks than environments.
    """
    if len(env_specs) < ranks.count:
        raise ValueError(
            f"{ranks.count} processes cannot share {len(env_specs)} environments: start fewer, or raise "
            "finetune.envs_per_task"
        )
    return ranks.deal(range(len(env_specs)))


def learn_online(
    loop: Loop,
    settings: config.Finetune,
    demos: ReplayBuffer | None,
    replay: ReplayBuffer,
    envs: VectorEnv,
    env_specs: Sequence[TaskSpec],
    collecting: Actor,
    specs: Sequence[TaskSpec],
    curriculum: Curriculum | None = None,
) -> None:
    """Learn online, up to `settings.env_steps` over all environments of all ranks together, or until it stops early.

    While the environments take a step, the learner makes the updates that are due: they read what was stored before
    that step, so that the order of everything is fixed, however long either takes. With `learning.clipped` no weight
    moves while episodes are collected: every so often the policy learns from them, and then all updates that are due
    are made.

    A task that the curriculum has found solved rests: its environments stay in the middle of their episodes, it counts
    no steps, and its own episodes are not drawn. Its demonstrations are: they cost no step, and keep it solved while
    what all tasks share goes on changing.

    Args:
        loop: what is updated, saved and logged.
        settings: sizes and intervals.
        demos: demonstrations mixed into every batch; None where there are none.
        replay: takes the episodes collected by this rank.
        envs: the environments of this rank.
        env_specs: the task of each environment of the run; this rank's are `ranks.deal(env_specs)`.
        collecting: collects; an actor of its own, since evaluation must not disturb its plans.
        specs: the tasks evaluated.
        curriculum: says which tasks are solved, and lets the model grow; None plays all of them throughout.

    Raises:
        ValueError: a process is left without an environment or without a slice.
    """
    ranks, num_envs, total = loop.ranks, len(env_specs), settings.env_steps
    all_rows, own_specs = collecting.rows([spec.name for spec in env_specs]), ranks.deal(env_specs)
    numbers = ranks.deal(range(num_envs))
    rows = all_rows[numbers]
    seed = loop.seed + 2 + RANK_SEEDS * ranks.rank
    if loop.resumed and not loop.same_ranks:
        seed += loop.position
    collector = Collector(own_specs, rows, envs, collecting, replay, settings.imitate, seed)
    clipped = loop.learner.learning.clipped
    phase = PolicyPhase(loop.learner, clipped, loop.generator, ranks, total) if clipped else None
    constraint = make_constraint(
        settings, all_rows, collecting.table.names, loop.seed + 4, clipped.plan if clipped else True
    )
    playing = np.ones(num_envs, dtype=bool)
    drawn = ranks.collect(replay.weight_of(rows))
    num_demos, num_own = _shares(loop, settings, num_envs, demos is not None, drawn)
    if curriculum and ranks.count > 1 and ranks.any(not num_demos)[0]:
        raise ValueError(
            "finetune.scaling on several processes needs demonstrations for each of them: one whose tasks are all "
            "solved has nothing else to learn from. Raise finetune.demo_fraction, or start one process."
        )
    updates_owed, seeded = 0.0, False
    if loop.resumed:
        _take_up(loop, collector, replay, rows)
        _take_up_constraint(loop, constraint)
        _take_up_phase(loop, phase, replay)
        updates_owed = loop.resumed.values["updates_owed"]
        seeded = loop.resumed.values.get("seeded", False)
        if curriculum:
            curriculum.load_state(loop.resumed.values["curriculum"])
    loop.learner.climb = constraint.publish(loop.actor.table)

    def save() -> None:
        decided = {f"{_CONSTRAINT}{name}": tensor for name, tensor in constraint.state_tensors().items()}
        values: dict[str, Any] = {"updates_owed": updates_owed, "seeded": seeded}
        if phase:
            decided |= {f"{_PHASE}{name}": tensor for name, tensor in phase.state_tensors().items()}
            values["policy_phase"] = phase.metrics
        if curriculum:
            values["curriculum"] = curriculum.state()
        loop.save({**collector.state_tensors(), **decided}, values, replay)

    def measure() -> dict[str, float]:
        grown, improved = curriculum.metrics() if curriculum else {}, phase.metrics if phase else {}
        return {**_measure(loop, replay), **constraint.metrics(), **improved, **grown}

    def rest() -> None:
        """Let solved tasks rest, and others play."""
        nonlocal playing, num_own
        if curriculum:
            playing = np.array(curriculum.playing([spec.name for spec in env_specs]))
            drawn = _drawn(ranks, replay, rows, playing[numbers])
            _, num_own = _shares(loop, settings, num_envs, demos is not None, drawn)
            loop.stopped = loop.stopped or curriculum.finished

    with (
        Interrupt(loop.runtime.stop_seconds) as interrupt,
        Progress(loop.label, total, "env_steps", loop.position, quiet=not ranks.is_main) as progress,
    ):

        def tell(said: Sequence[str]) -> None:
            for line in said:
                progress.write(f"{loop.label}: {line}; {loop.position} env_steps")

        def update() -> None:
            nonlocal updates_owed
            while updates_owed >= 1:
                updates_owed -= 1
                with loop.clock.phase("sample"):
                    batch = _sample(demos, replay, num_demos, num_own, loop.generator)
                loop.update(batch, "online")
                if curriculum:
                    tell(curriculum.updated())
                collecting.refresh()

        def heed(scores: dict[str, float]) -> dict[str, float]:
            assert curriculum is not None
            tell(curriculum.evaluated(scores))
            rest()
            return curriculum.solutions()

        if curriculum:
            loop.heed = heed
            rest()
        owed = loop.owes_evaluation or loop.position == 0
        if owed and not loop.evaluate(specs, progress, interrupt):
            interrupt.leave()
        while loop.position < total and not loop.stopped:
            loop.learner.lr_scale = settings.lr_scale * cooldown(loop.position, total, settings.cooldown)
            ready = (collector.episodes >= settings.seeding_episodes) | ~playing[numbers]
            not_seeded, stop = ranks.any(not (seeded or ready.all()), interrupt.requested is not None)
            seeded = not not_seeded
            if stop:
                save()
                interrupt.leave()
            plan, weight = constraint.choose(loop.position, not not_seeded)
            with loop.clock.phase("act"):
                collector.begin_step(plan[numbers], weight[numbers], playing[numbers] if curriculum else None)
            num_playing = int(playing.sum())
            updates_owed += 0.0 if not_seeded else num_playing * settings.utd
            if not phase:
                update()
            with loop.clock.phase("env_wait"):
                finished = collector.end_step()
            for episode in finished:
                loop.recent.setdefault(episode.task, []).append((episode.score, episode.episode_return))
            ended = _of_all(ranks, finished)
            for episode in ended:
                constraint.record(episode, not not_seeded)
                loop.learner.climb = constraint.publish(loop.actor.table)
            if ended:
                rest()
            before, loop.position = loop.position, loop.position + num_playing
            progress.update(num_playing)
            if phase and clipped and (due(before, loop.position, clipped.every) or loop.position >= total):
                with loop.clock.phase("update"):
                    phase.run(replay, loop.position)
                collecting.refresh()
                update()
            loop.settle(before, total, settings, specs, progress, interrupt, save, measure)


def _shares(
    loop: Loop, settings: config.Finetune, num_envs: int, has_demos: bool, drawn: Sequence[float]
) -> tuple[int, int]:
    """Return how many slices of each batch this rank draws from demonstrations and from its own episodes.

    In proportion to its environments, so that every environment of the run counts alike in a batch; `drawn` says how
    often the tasks of each rank are to be drawn.

    Raises:
        ValueError: a rank is left without an environment or without a slice.
    """
    ranks = loop.ranks
    envs = [len(range(rank, num_envs, ranks.count)) for rank in range(ranks.count)]
    total_demos = round(settings.batch_size * settings.demo_fraction) if has_demos else 0
    demos, own = ranks.shares(total_demos, envs), ranks.shares(settings.batch_size - total_demos, drawn)
    if not all(envs) or not all(first + second for first, second in zip(demos, own, strict=True)):
        raise ValueError(
            f"{ranks.count} processes share {num_envs} environments and batches of {settings.batch_size} slices, which "
            "leaves one of them without any. Start fewer processes, or raise finetune.envs_per_task or batch_size."
        )
    return demos[ranks.rank], own[ranks.rank]


def _drawn(ranks: Ranks, replay: ReplayBuffer, rows: torch.Tensor, playing: np.ndarray) -> list[float]:
    """Leave the solved tasks' own episodes out, and return how often the tasks of each rank are to be drawn.

    A rank that has collected nothing else draws demonstrations alone; where none has, nothing is left out.
    """
    others = rows[torch.from_numpy(playing)]
    some = replay.leave_out(sorted(set(rows.tolist()) - set(others.tolist())))
    drawn = ranks.collect(replay.weight_of(others) if some else 0.0)
    if not any(drawn):
        some = replay.leave_out(())
        drawn = ranks.collect(replay.weight_of(rows) if some else 0.0)
    return drawn if any(drawn) else ranks.collect(replay.weight_of(rows))


def _sample(
    demos: ReplayBuffer | None, replay: ReplayBuffer, num_demos: int, num_own: int, generator: torch.Generator
) -> Batch:
    if demos is None or num_demos == 0:
        return replay.sample(num_own, generator)
    return sample_mixture(demos, replay, num_demos + num_own, num_demos / (num_demos + num_own), generator)


def _take_up(loop: Loop, collector: Collector, replay: ReplayBuffer, rows: torch.Tensor) -> None:
    """Go on from a save: environments and replay as they were, or dealt anew to another number of ranks."""
    saved, ranks = loop.resumed, loop.ranks
    assert saved is not None
    if loop.same_ranks:
        loop.saves.load_replay(saved, replay)
        tensors, _ = saved.of_rank(ranks.rank)
        collector.load_state_tensors(tensors)
        return
    states = [saved.of_rank(rank)[0] for rank in range(saved.num_ranks)]
    collector.load_state_tensors(deal_state(states, ranks.rank, ranks.count))
    owners = ranks.collect(set(rows.tolist()))
    for rank in range(saved.num_ranks):
        for part in saved.replay_parts(rank):
            deal_episodes(part, replay, _mine(owners, ranks.rank))
    loop.saves.forget_replay()


def _take_up_constraint(loop: Loop, constraint: Schedule | Evidence) -> None:
    """Go on with what was measured: all ranks have kept the same, so that any number of them goes on with it."""
    assert loop.resumed is not None
    tensors, _ = loop.resumed.of_rank(0)
    constraint.load_state_tensors(
        {name.removeprefix(_CONSTRAINT): value for name, value in tensors.items() if name.startswith(_CONSTRAINT)}
    )


def _take_up_phase(loop: Loop, phase: PolicyPhase | None, replay: ReplayBuffer) -> None:
    """Go on learning from the episodes that were not learned from; dealt to other ranks, from none of those there."""
    assert loop.resumed is not None
    if not phase:
        return
    phase.metrics = loop.resumed.values["policy_phase"]
    if not loop.same_ranks:
        phase.skip(replay)
        return
    tensors, _ = loop.resumed.of_rank(loop.ranks.rank)
    phase.load_state_tensors(
        {name.removeprefix(_PHASE): value for name, value in tensors.items() if name.startswith(_PHASE)}
    )


def _of_all(ranks: Ranks, finished: Sequence[Finished]) -> list[Finished]:
    """Return the episodes that have just ended on any rank, in the order of the run's environments and numbered so."""
    (some,) = ranks.any(bool(finished))
    if not some:
        return []
    own = [episode._replace(env=ranks.rank + ranks.count * episode.env) for episode in finished]
    return sorted(episode for part in ranks.collect(own) for episode in part)


def _mine(owners: Sequence[set[int]], rank: int) -> Callable[[int, int], bool]:
    """Return who takes an episode: the ranks that play its task take turns."""

    def takes(task: int, number: int) -> bool:
        able = [other for other, tasks in enumerate(owners) if task in tasks] or list(range(len(owners)))
        return able[number % len(able)] == rank

    return takes


def _measure(loop: Loop, replay: ReplayBuffer) -> dict[str, float]:
    """Return how much is in the replay, over all ranks, and how long ago it was collected."""
    everyone = loop.ranks.collect((replay.num_episodes, replay.num_transitions, replay.mean_age()))
    episodes, transitions, _ = (float(sum(column)) for column in zip(*everyone, strict=True))
    if not episodes:
        return {}
    age = sum(stored * age for stored, _, age in everyone) / episodes * loop.ranks.count
    return {"replay/episodes_sum": episodes, "replay/transitions_sum": transitions, "replay/age_mean": age}
