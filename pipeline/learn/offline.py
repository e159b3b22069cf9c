"""Learning from demonstrations alone."""

from __future__ import annotations

from pipeline.learn.replay import ReplayBuffer
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
    run.evaluate_first(evaluate_first and run.resumed is None)
    while run.unfinished:
        run.learner.position = run.position
        run.show(extensions.lines("before_update", share))
        with run.clock.phase("sample"):
            batch = demos.sample(share, run.generator)
        run.update(batch, "pretrain")
        run.advance(1)
        (stop,) = ranks.any(run.interrupt.is_requested())
        run.log_evaluate_save(run.position - 1, stop)
