"""Learning online, on all training tasks at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from pipeline import config
from pipeline.learn.collector import Collector, Finished, share_out_episodes, share_out_state
from pipeline.learn.constraint import Evidence, Schedule, make_constraint
from pipeline.learn.mixer import BatchMixer
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.returns import kept_returns
from pipeline.learn.training_run import TrainingRun
from pipeline.model.actor import Actor
from pipeline.run.ranks import RANK_SEEDS, Ranks
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv

_log = logging.getLogger(__name__)


def learn_online(
    run: TrainingRun,
    settings: config.Finetune,
    demos: ReplayBuffer | None,
    replay: ReplayBuffer,
    envs: VectorEnv,
    env_specs: Sequence[TaskSpec],
    acting: Actor,
) -> None:
    """Learn online, up to `settings.env_steps` over all environments of all ranks together, or until the run stops.

    Updates run while the environments step and sample what was stored before: results do not depend on timing. A task
    that an extension pauses counts no steps, and only its demonstrations are sampled.

    Args:
        demos: mixed into every batch; None where there are none.
        replay, envs: of this rank; `env_specs` has the tasks of the environments of all ranks.
        acting: collects episodes; not the actor of the evaluations, or these would overwrite its plans.
    """
    ranks, learner, extensions = run.ranks, run.learner, run.learner.extensions
    names, numbers = [spec.name for spec in env_specs], ranks.shard(range(len(env_specs)))
    collector, constraint, mixer = _begin(run, settings, demos, replay, envs, env_specs, acting)
    playing = np.array([extensions.plays(name) for name in names])
    mixer.play(playing)
    run.evaluate_first(always=run.position == 0)

    while run.unfinished:
        learner.position = before = run.position
        now_playing = np.array([extensions.plays(name) for name in names])
        if (now_playing != playing).any():
            mixer.play(playing := now_playing)
        seeding, stop = _seeding_or_stopped(run, collector, mixer, playing)
        collector.seeded |= not seeding
        if stop:
            run.save_and_leave()
        # Choose: which environments plan, and how closely their plans follow the policy.
        plan, weight = constraint.choose(before, not seeding)
        # Act: one action per environment; the environments step in their own processes.
        with run.clock.phase("act"):
            collector.begin_step(plan[numbers], weight[numbers], playing[numbers])

        # Learn meanwhile: the updates that are due, `utd` per environment step, none while seeding.
        num_playing = int(playing.sum())
        run.updates_owed += 0.0 if seeding else num_playing * settings.utd
        if not extensions.acts_on_policy:
            _update(run, mixer, acting)

        # Store: episodes that ended, each in the replay of its rank; their scores, on all ranks, update the constraint.
        if ended := _end_step(run, collector):
            for episode in (one for one in ended if one.whole):
                constraint.record(episode, not seeding)
            learner.q_weight = constraint.publish(learner.table)
            mixer.play(playing)
        run.advance(num_playing)

        # With an extension that trains the policy by itself: its phase, then the updates that are due.
        if extensions.acts_on_policy and _policy_phase(run, acting, before):
            _update(run, mixer, acting)
        run.log_evaluate_save(before)
    _say_unlearned(ranks, mixer)


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
    return ranks.shard(range(len(env_specs)))


def _begin(
    run: TrainingRun,
    settings: config.Finetune,
    demos: ReplayBuffer | None,
    replay: ReplayBuffer,
    envs: VectorEnv,
    env_specs: Sequence[TaskSpec],
    acting: Actor,
) -> tuple[Collector, Schedule | Evidence, BatchMixer]:
    """Make the collector, the constraint and the batch mixer, with their saved state if the run is resumed."""
    ranks, learner = run.ranks, run.learner
    rows = acting.rows([spec.name for spec in env_specs])
    seed = run.seed + 2 + RANK_SEEDS * ranks.rank
    seed += run.position if run.resumed and not run.same_ranks else 0
    own = ranks.shard(range(len(env_specs)))
    returns = kept_returns(run, [replay] if demos is None else [demos, replay])
    collector = Collector(ranks.shard(env_specs), rows[own], envs, acting, replay, settings, seed, returns)
    constraint = make_constraint(settings, rows, learner.table.names, run.seed + 4, learner.extensions.plans)
    labelled = None if envs.labels is None else acting.rows(list(envs.labels.kinds)).tolist()
    mixer = BatchMixer(ranks, settings, rows, demos, replay, learner.extensions.pauses, labelled)
    run.parts, run.replay = {"collector": collector, "constraint": constraint}, replay
    run.measures = [constraint.metrics, mixer.metrics]
    if run.resumed:
        _resume(run, collector, constraint, replay)
    elif settings.demos_in_replay and demos is not None:
        if demos.num_transitions + demos.num_episodes > settings.replay_capacity:
            raise ValueError(
                f"finetune.demos_in_replay: {demos.num_transitions} demonstrated transitions do not fit into "
                f"replay_capacity {settings.replay_capacity}: raise it, or set demos_in_replay to false."
            )
        share_out_episodes(demos.state_tensors(), replay, _takes(ranks.collect(collector.tasks), ranks.rank))
    learner.q_weight = constraint.publish(learner.table)
    return collector, constraint, mixer


def _seeding_or_stopped(
    run: TrainingRun, collector: Collector, mixer: BatchMixer, playing: np.ndarray
) -> tuple[bool, bool]:
    """Return whether a rank still waits for an episode to learn from, and whether the run is to stop."""
    ranks = run.ranks
    waiting = collector.seeding(playing[ranks.shard(range(len(playing)))]) or not mixer.can_sample()
    flags = (waiting, run.interrupt.is_requested(), bool(collector.only_short))  # short episodes are not stored
    seeding, stop, some_short = ranks.any(*flags)
    if some_short:
        _go_without_short(ranks, collector, mixer, playing)
    return seeding, stop


def _say_unlearned(ranks: Ranks, mixer: BatchMixer) -> None:
    if not any(ranks.collect(mixer.can_sample())):
        _log.warning("nothing was learned online: no episode of at least planner.horizon steps has ended.")


def _go_without_short(ranks: Ranks, collector: Collector, mixer: BatchMixer, playing: np.ndarray) -> None:
    """Let a rank whose episodes are all too short draw demonstrations alone.

    Raises:
        ValueError: on every rank, if no rank has stored anything, or one would be left without a slice.
    """
    said = ranks.collect(collector.only_short)
    if all(said):
        raise ValueError(said[0])
    mixer.draw_what_is_stored(playing)


def _update(run: TrainingRun, mixer: BatchMixer, acting: Actor) -> None:
    """Make the updates that are due."""
    for _ in run.updates_due():
        run.before_update()
        with run.clock.phase("sample"):
            batch = mixer.sample(run.generator)
        run.update(batch, "online")
        acting.refresh()


def _policy_phase(run: TrainingRun, acting: Actor, before: int) -> bool:
    """Let extensions train the policy; return whether one did."""
    assert run.replay is not None
    with run.clock.phase("update"):
        trained = run.learner.extensions.phase(run.replay, before, run.position, run.total)
    if trained:
        acting.refresh()
    return trained


def _resume(run: TrainingRun, collector: Collector, constraint: Schedule | Evidence, replay: ReplayBuffer) -> None:
    """Load environments and replay from a save; with another number of ranks, redistribute them."""
    saved, ranks, extensions = run.resumed, run.ranks, run.learner.extensions
    assert saved is not None
    constraint.load_state_tensors(run.saved_part("constraint", 0))  # equal on all ranks
    if run.same_ranks:
        run.saves.load_replay(saved, replay)
        collector.load_state_tensors(run.saved_part("collector", ranks.rank))
    else:
        states = [run.saved_part("collector", rank) for rank in range(saved.num_ranks)]
        collector.load_state_tensors(share_out_state(states, ranks.rank, ranks.count, collector.env_dims))
        owners = ranks.collect(collector.tasks)
        for rank in range(saved.num_ranks):
            for part in saved.replay_parts(rank):
                share_out_episodes(part, replay, _takes(owners, ranks.rank))
        run.saves.forget_replay()
    for extension in extensions:
        own = run.saved_part(extension.name, ranks.rank) if run.same_ranks else None
        extension.load_rank_state_tensors(own, replay)


def _end_step(run: TrainingRun, collector: Collector) -> list[Finished]:
    """Wait for the environments; return the episodes that ended on any rank, sorted by environment."""
    ranks = run.ranks
    with run.clock.phase("env_wait"):
        finished = collector.end_step()
    for episode in [one for one in finished if one.whole]:
        run.recent.setdefault(episode.task, []).append((episode.score, episode.episode_return))
    (some,) = ranks.any(bool(finished))
    if not some:
        return []
    own = [episode._replace(env=ranks.rank + ranks.count * episode.env) for episode in finished]
    return sorted(episode for part in ranks.collect(own) for episode in part)


def _takes(owners: Sequence[set[int]], rank: int) -> Callable[[int, int], bool]:
    """Return whether this rank takes a saved episode: the ranks that play its task take turns."""

    def takes(task: int, number: int) -> bool:
        able = [other for other, tasks in enumerate(owners) if task in tasks] or list(range(len(owners)))
        return able[number % len(able)] == rank

    return takes
