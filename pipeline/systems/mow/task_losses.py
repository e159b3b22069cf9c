"""What is learned about the tasks of a run beside the model: their losses' scales, and a head that predicts the task.

Neither is part of the model. Acting reads neither, a checkpoint holds neither, and a new task needs neither: they
belong to one learner and the rows of its task table, start anew with its optimisers, and are saved with them.

Source: MoW (arXiv 2602.01270).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.config import Learning
from pipeline.learn.extension import Extension, Metrics
from pipeline.learn.learner import Learner
from pipeline.shapes import Batch


class TaskLossHead(nn.Module):
    """The learned parts of `learning.weighting` and `learning.task_id_coef`.

    Args:
        num_tasks: n, rows of the task table.
        latent_dim: Z.
        learning: says which parts there are.

    Attributes:
        log_scale: (n,) logarithm of the scale of each task's loss, 0 at first: the scales are then 1, as if even.
        identify: predicts the task from a latent; zero at first, so that it does not disturb the latents before it
            knows anything.
    """

    def __init__(self, num_tasks: int, latent_dim: int, learning: Learning):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(num_tasks)) if learning.weighting == "harmony" else None
        self.identify: nn.Linear | None = None
        if learning.task_id_coef:
            # Zeroed and not drawn: the draws of everything else stay as they are without it.
            self.identify = cast("nn.Linear", nn.utils.skip_init(nn.Linear, latent_dim, num_tasks))
            nn.init.zeros_(self.identify.weight)
            nn.init.zeros_(self.identify.bias)


class TaskLosses(Extension):
    """Weighs the tasks' losses by learned scales, and predicts the task from what the dynamics predict.

    Args:
        num_tasks: n, rows of the task table.
        latent_dim: Z.
        learning: says which of the two there are.
    """

    name = "tasks"

    def __init__(self, num_tasks: int, latent_dim: int, learning: Learning):
        self._learning = learning
        self.head = TaskLossHead(num_tasks, latent_dim, learning)
        self.weighs = self.head.log_scale is not None

    def attach(self, learner: Learner) -> None:
        """Go to the device of this learner."""
        self._learner = learner
        self.head.to(learner.model.bins.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what there is as groups of the model's optimiser."""
        scale, identify = self.head.log_scale, self.head.identify
        scales = {"params": [] if scale is None else [scale], "lr_scale": self._learning.weighting_lr_scale}
        head = {"params": [] if identify is None else list(identify.parameters()), "lr_scale": 1.0}
        return [group for group in (scales, head) if group["params"]]

    def named_parameters(self) -> dict[str, Any]:
        """Return the same parameters by name."""
        return dict(self.head.named_parameters())

    def weigh(self, per_slice: Tensor, batch: Batch) -> Tensor | None:
        """Weigh losses (B,) by the scales of their tasks."""
        scale = self.head.log_scale
        return None if scale is None else harmony_loss(per_slice, scale[batch.task])

    def model_loss(self, z: Tensor, batch: Batch, weights: Tensor) -> tuple[Tensor | None, Metrics]:
        """Return the loss of predicting the task; its gradient reaches dynamics and, through them, the encoder."""
        if self.head.identify is None:
            return None, {}
        loss, accuracy = task_id_loss(self.head.identify(self._learner.model.latent(z)), batch.task, weights)
        metrics = {"task_id_loss": loss.detach(), "task_id_accuracy": accuracy}
        return self._learning.task_id_coef * loss, metrics

    def metrics(self) -> dict[str, float]:
        """Return the scale of each task's loss."""
        scale, names = self.head.log_scale, self._learner.table.names
        if scale is None:
            return {}
        return {f"harmony/{task}": one for task, one in zip(names, scale.detach().exp().tolist(), strict=True)}

    def state_tensors(self) -> dict[str, Tensor]:
        """Return scales and head."""
        return dict(self.head.state_dict())

    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_tensors` returned.

        Raises:
            ValueError: it is of other tasks, or of other options.
        """
        own = {name: value.shape for name, value in self.head.state_dict().items()}
        odd = sorted(dict(own.items() ^ {name: value.shape for name, value in state.items()}.items()))
        if odd:
            raise ValueError(
                f"the saved state is of another model: what is learned of the tasks ({', '.join(odd)}) does not match. "
                "Was the set of tasks or an option of learning changed?"
            )
        self.head.load_state_dict(state)


def harmony_loss(each: Tensor, log_scale: Tensor) -> Tensor:
    """Weigh slices' losses by the learned scales s of their tasks: the mean of l / s + ln(1 + s), s = exp(log_scale).

    Every slice brings the term of its own task, so that the loss is a mean over slices like any other: it does not
    depend on how a batch is cut, a task counts by its share of the slices, and one without slices is left as it is.
    The scale of a task whose mean loss is L comes to rest at -L / s^2 + 1 / (1 + s) = 0.

    Args:
        each: (B,) losses, positive.
        log_scale: (B,) of their tasks.

    Source: MoW (arXiv 2602.01270), sum_k L_k / s_k + ln(1 + s_k), there over tasks that are drawn alike.
    """
    return (each * (-log_scale).exp() + F.softplus(log_scale)).mean()


def task_id_loss(logits: Tensor, task: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of predicted task rows, and how often they are right.

    Args:
        logits: (T, B, n) over n tasks.
        task: (B,) the right rows.
        weights: (T,)

    Source: MoW (arXiv 2602.01270), task prediction.
    """
    entropies = F.cross_entropy(logits.movedim(-1, 1), task.expand(logits.shape[:2]), reduction="none")  # (T, B)
    return weights @ entropies.mean(1), (logits.argmax(-1) == task).float().mean()
