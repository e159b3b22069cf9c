"""Early stopping by the evaluations of a run, with the best weights restored."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.files import atomic_file
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel


class EarlyStop:
    """Saves the trained weights and the constraints of the best evaluation; of equal ones, of the latest.

    Its decisions follow from the scores alone, so that a resumed loop needs only its file.

    Args:
        model: its trainable parameters, and the target Q heads that follow them, are kept.
        table: its constraints (how closely plans follow the policy) are kept with the weights they were evaluated with.
        path: the file they are kept in.
        stop_score: a score that is good enough.
        patience: evaluations in a row without a new best after which to stop.
        watch: called after each evaluation.
        start_episodes: episodes of each evaluation, given if the first one precedes all learning. That one never stops
            the run, and its weights are restored only if all others score worse by more than chance.
    """

    def __init__(
        self,
        model: WorldModel,
        table: TaskTable,
        path: Path,
        stop_score: float,
        patience: int,
        watch: Callable[[], None] = lambda: None,
        start_episodes: int | None = None,
    ):
        self._model, self._table, self._path = model, table, path
        self._stop_score, self._patience, self._watch = stop_score, patience, watch
        self._start_episodes = start_episodes

    def reached(self, scores: list[float]) -> bool:
        """Whether to stop after evaluations of these scores."""
        learned = self._learned(scores)
        if not learned:
            return False
        best = max(learned)
        return best >= self._stop_score or len(learned) - 1 - learned.index(best) >= self._patience

    def evaluated(self, scores: list[float]) -> bool:
        """Keep the present weights if the newest of these scores is the best; return whether to stop."""
        learned, newest = self._learned(scores), scores[-1]
        if not learned or (newest == max(learned) and not self._harmed(scores[0], newest)):
            with atomic_file(self._path) as partial:
                save_file({name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}, partial)
        self._watch()
        return self.reached(scores)

    def restore(self) -> None:
        """Load the best weights and their constraints, if any were saved."""
        if self._path.exists():
            kept = load_file(self._path)
            with torch.no_grad():
                for name, tensor in self._tensors().items():
                    tensor.copy_(kept[name])

    def _learned(self, scores: list[float]) -> list[float]:
        return scores if self._start_episodes is None else scores[1:]

    def _harmed(self, start: float, score: float) -> bool:
        """Whether the score fell by more than two standard errors, at the largest variance of scores in [0, 1]."""
        if self._start_episodes is None:
            return False
        variance = start * (1 - start) + score * (1 - score)
        return start - score > 2 * math.sqrt(variance / self._start_episodes)

    def _tensors(self) -> dict[str, Tensor]:
        trained = {
            name: parameter
            for name, parameter in self._model.named_parameters()
            if parameter.requires_grad or name.startswith("target_q_heads.")
        }
        return {**trained, "constraint": self._table.constraint}
