"""Learning from demonstrations alone."""

from __future__ import annotations

from pipeline import config
from pipeline.learn.replay import ReplayBuffer
from pipeline.learn.returns import kept_returns
from pipeline.learn.training_run import TrainingRun


def learn_offline(run: TrainingRun, demos: ReplayBuffer, evaluate_first: bool = False) -> None:
    """Learn from demonstrations, up to `settings.updates` or until the run stops early.

    Args:
        run: what is updated, evaluated, logged and saved.
        demos: demonstrations of all tasks.
        evaluate_first: evaluate what was there before anything is learned.
    """
    ranks, extensions = run.ranks, run.learner.extensions
    share = ranks.shares(run.settings.batch_size, [1] * ranks.count)[ranks.rank]
    kept_returns(run, [demos])
    run.evaluate_first(evaluate_first and run.resumed is None)
    while run.unfinished:
        run.learner.position = run.position
        run.before_update()
        run.show(extensions.lines("before_update", share))
        with run.clock.phase("sample"):
            batch = demos.sample(share, run.generator)
        run.update(batch, "pretrain")
        run.advance(1)
        (stop,) = ranks.any(run.interrupt.is_requested())
        run.log_evaluate_save(run.position - 1, stop)


def learn_control(
    run: TrainingRun, settings: config.Finetune, demos: ReplayBuffer, num_envs: int, longest: int
) -> None:
    """Make as many updates as `learn_online` would, on demonstrations alone: what own episodes are worth is measured
    against it.

    Args:
        run: what is updated, evaluated, logged and saved; its position counts the environment steps that are not made.
        settings: of the finetuning that this is the control of.
        demos: demonstrations of all tasks.
        num_envs: environments that would step together.
        longest: steps of the longest of their episodes: while the first ones are played nothing is updated.
    """
    ranks = run.ranks
    share = ranks.shares(settings.batch_size, [1] * ranks.count)[ranks.rank]
    seeding = num_envs * longest * settings.seeding_episodes
    kept_returns(run, [demos])
    run.evaluate_first(run.resumed is None)
    while run.unfinished:
        run.learner.position = before = run.position
        run.updates_owed += num_envs * settings.utd if before >= seeding else 0.0
        for _ in run.updates_due():
            run.before_update()
            run.update(demos.sample(share, run.generator), "pretrain")
        run.advance(num_envs)
        (stop,) = ranks.any(run.interrupt.is_requested())
        run.log_evaluate_save(before, stop)
