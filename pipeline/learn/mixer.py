"""Batches mixed of demonstrations and own episodes: how many slices of each a rank samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import config
from pipeline.learn.replay import ReplayBuffer, sample_mixture
from pipeline.run.ranks import Ranks
from pipeline.shapes import Batch


class BatchMixer:
    """Samples this rank's share of every batch.

    Args:
        ranks: the processes of the run.
        settings: `batch_size`, and `demo_fraction`, the fraction of demonstrations in a batch.
        rows: (N,) row of the task table of each environment of the run; rank r has every `ranks.count`-th of them.
        demos: demonstrations; None where there are none.
        replay: own episodes of this rank.
        pauses: tasks may rest, or may have rested before this run was resumed.
        labelled: rows of the tasks that an expert labels; None where none is asked.

    Attributes:
        num_demos, num_own: slices of each batch that this rank draws.

    Raises:
        ValueError: a rank is left without an environment or without a slice.
    """

    def __init__(
        self,
        ranks: Ranks,
        settings: config.Finetune,
        rows: Tensor,
        demos: ReplayBuffer | None,
        replay: ReplayBuffer,
        pauses: bool = False,
        labelled: Sequence[int] | None = None,
    ):
        self._ranks, self._settings, self._rows, self._demos, self._replay = ranks, settings, rows, demos, replay
        self._rested, self._labelled = pauses, labelled  # the first: whether a rank may have nothing to draw
        self._stored = False  # whether something to draw has been seen in the replay: it never becomes empty again
        own = torch.tensor(ranks.shard(rows.tolist()))
        self.num_demos, self.num_own = self._shares(ranks.collect(replay.weight_of(own)))

    def can_sample(self) -> bool:
        """Whether own episodes are stored to draw from, or none are drawn: those shorter than a slice are left out."""
        if self.num_own and not self._stored:
            own = set(self._ranks.shard(self._rows.tolist()))
            drawn = [row for row in own if self._replay.weight_of(torch.tensor([row])) > 0]
            self._stored = self._replay.num_transitions_of(drawn) > 0
        return self._stored or not self.num_own

    def sample(self, generator: torch.Generator) -> Batch:
        """Draw this rank's share of a batch."""
        if self._demos is None or self.num_demos == 0:
            return self._replay.sample(self.num_own, generator)
        size = self.num_demos + self.num_own
        return sample_mixture(self._demos, self._replay, size, self.num_demos / size, generator)

    def play(self, playing: np.ndarray) -> None:
        """Sample own episodes only of tasks whose environments are played, (N,) bool; every rank calls this.

        A rank without such episodes samples demonstrations alone; if no rank has any, all tasks are sampled.
        """
        if playing.all() and not self._rested:
            return
        self._rested, ranks, replay = True, self._ranks, self._replay
        rows = torch.tensor(ranks.shard(self._rows.tolist()))
        others = rows[torch.from_numpy(np.array(ranks.shard(playing.tolist()), dtype=bool))]
        some = replay.leave_out(sorted(set(rows.tolist()) - set(others.tolist())))
        drawn = ranks.collect(replay.weight_of(others) if some else 0.0)
        if not any(drawn):
            some = replay.leave_out(())
            drawn = ranks.collect(replay.weight_of(rows) if some else 0.0)
        self.num_demos, self.num_own = self._shares(drawn if any(drawn) else ranks.collect(replay.weight_of(rows)))

    def draw_what_is_stored(self, playing: np.ndarray) -> None:
        """From now on let ranks without own episodes sample demonstrations alone; every rank calls this."""
        if not self._rested:
            self._rested = True
            self.play(playing)

    def metrics(self) -> dict[str, float]:
        """Return the replay's size over all ranks, its episodes' mean age in transitions, and how much is labelled."""
        ranks, replay = self._ranks, self._replay
        everyone = ranks.collect((replay.num_episodes, replay.num_transitions, replay.mean_age()))
        episodes, transitions, _ = (float(sum(column)) for column in zip(*everyone, strict=True))
        if not episodes:
            return {}
        age = sum(stored * age for stored, _, age in everyone) / episodes * ranks.count
        found = {"replay/episodes_sum": episodes, "replay/transitions_sum": transitions, "replay/age_mean": age}
        if self._labelled is not None:
            of_tasks = sum(ranks.collect(replay.num_transitions_of(self._labelled)))
            found["replay/labelled_share"] = of_tasks / transitions
        return found

    def _shares(self, drawn: Sequence[float]) -> tuple[int, int]:
        """Return how many slices of demonstrations and of own episodes this rank samples.

        Demonstrations are shared out by the ranks' environments, own episodes by `drawn`, the total sampling weight of
        each rank's tasks: so every environment of the run has the same share of a batch.
        """
        ranks, size = self._ranks, self._settings.batch_size
        envs = [len(range(rank, len(self._rows), ranks.count)) for rank in range(ranks.count)]
        total_demos = 0 if self._demos is None else round(size * self._settings.demo_fraction)
        demos, own = ranks.shares(total_demos, envs), ranks.shares(size - total_demos, drawn)
        if not all(envs) or not all(first + second for first, second in zip(demos, own, strict=True)):
            raise ValueError(
                f"{ranks.count} processes share {len(self._rows)} environments and batches of {size} slices, which "
                "leaves one of them without any. Start fewer processes, or raise finetune.envs_per_task or batch_size."
            )
        return demos[ranks.rank], own[ranks.rank]
