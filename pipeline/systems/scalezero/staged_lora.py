"""Staged LoRA: training in stages, each of which adds a low-rank adapter and freezes what was learned before.

A scaled matrix is W = a_0 W_0 + sum_j a_j (alpha / r) B_j A_j with a = 1 + 0.2 tanh(logit); in stage 0 it is W_0. In
stage s the adapter A_s, B_s trains, and so do the scales a_0 to a_{s-1} of what came before; all else of a scaled
part is frozen, and parts that are not scaled go on training. A stage begins with B_s = 0 and new scales at exactly 1:
what the model computes does not change by it, to the bit.

torch's parametrizations put the sum in the place of the matrix, whatever reads it.

Source: ScaleZero (arXiv 2509.07945), dynamic parameter scaling.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pipeline import config
from pipeline.model.world_model import PARTS, WorldModel

_SCALE_RANGE = 0.2  # a scale lies within 1 -+ this
_INIT_STD = 0.01  # of A
_SEED = 29


class ScaledMatrix(nn.Module):
    """The parametrization of one matrix W_0 (..., m, n), further dims in front counting matrices of one size.

    Args:
        weight: W_0, for its shape and place.
        adapters: stages after the first.
        rank: r.
        alpha: adapters are scaled by alpha / r.
        generator: draws A.
    """

    def __init__(self, weight: Tensor, adapters: int, rank: int, alpha: float, generator: torch.Generator):
        super().__init__()
        *stack, m, n = weight.shape
        self.A = nn.ParameterList(
            (_INIT_STD * torch.randn(*stack, rank, n, generator=generator)).to(weight) for _ in range(adapters)
        )
        self.B = nn.ParameterList(weight.new_zeros(*stack, m, rank) for _ in range(adapters))
        # The last adapter has none: its scale would train only in a stage after the last.
        self.logits = nn.ParameterList(weight.new_zeros(()) for _ in range(adapters))
        self.stage, self._factor = 0, alpha / rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return W for W_0."""
        if not self.stage:
            return weight
        total = self._scale(0) * weight
        for j in range(1, self.stage + 1):
            scale = self._factor * self._scale(j) if j < self.stage else self._factor
            total = total + (scale * self.B[j - 1]) @ self.A[j - 1]
        return total

    def trained(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that train in the present stage."""
        if self.stage:
            yield self.A[self.stage - 1]
            yield self.B[self.stage - 1]
            yield from list(self.logits)[: self.stage]

    def _scale(self, j: int) -> Tensor:
        return 1 + _SCALE_RANGE * torch.tanh(self.logits[j])


class StagedLora:
    """The stages of one world model: puts the adapters in, all of them at once, and moves on from stage to stage.

    The matrices are those of the linear layers and, stacked, of the experts; a router keeps the matrix it has, and
    attention what it adds by distance.

    Args:
        model: a world model of plain layers, all of whose parameters train; it is changed in place.
        settings: which parts, how many adapters, how large.
        seed: of the adapters' first values.

    Raises:
        ValueError: the model is in stages already, or a part has no matrix.
    """

    def __init__(self, model: WorldModel, settings: config.Scaling, seed: int):
        if _is_scaled(model):
            raise ValueError("this model is in stages already: load the checkpoint anew")
        self.model, self.settings, self.stage = model, settings, 0
        self._parts = [model.get_submodule(PARTS[part]) for part in settings.parts]
        generator = torch.Generator().manual_seed(seed + _SEED)
        self._matrices: list[ScaledMatrix] = []
        self._targets: list[ScaledMatrix] = []  # in the target Q heads, which follow the online ones
        for part in self._parts:
            found = list(_matrices(part))
            if not found:
                raise ValueError(f"finetune.scaling.parts: {type(part).__name__} has no matrix that could be scaled")
            for module, name in found:
                weight = module.get_parameter(name)
                matrix = ScaledMatrix(weight, settings.adapters, settings.rank, settings.alpha, generator)
                parametrize.register_parametrization(module, name, matrix)
                self._matrices.append(matrix)
            if part is model.q_heads:
                online = self._matrices[-len(found) :]
                for (module, name), matrix in zip(list(_matrices(model.target_q_heads)), online, strict=True):
                    self._targets.append(copy.deepcopy(matrix).requires_grad_(False))
                    parametrize.register_parametrization(module, name, self._targets[-1])
        self.enter(0)

    @property
    def last(self) -> int:
        """The last stage."""
        return self.settings.adapters

    @property
    def trainable_parameters(self) -> int:
        """How many numbers train in the present stage."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    def enter(self, stage: int) -> None:
        """Set what trains from now on; what the model computes stays as it is.

        Raises:
            ValueError: there is no such stage.
        """
        if not 0 <= stage <= self.last:
            raise ValueError(f"there are stages 0 to {self.last} (finetune.scaling.adapters), not {stage}")
        self.stage = stage
        for part in self._parts:
            part.requires_grad_(stage == 0)
        for matrix in self._matrices:
            matrix.stage = stage
            matrix.requires_grad_(False)
            for parameter in matrix.trained():
                parameter.requires_grad_(True)
        for matrix in self._targets:
            matrix.stage = stage


def merged(model: WorldModel, build: Callable[[config.Model], WorldModel]) -> WorldModel:
    """Return a copy whose scaled matrices are plain ones again, or the model itself where there are none.

    `build` makes a world model of given sizes.
    """
    if not _is_scaled(model):
        return model
    plain = build(model.config)
    state = {}
    for name in plain.state_dict():
        path, _, leaf = name.rpartition(".")
        # By attribute, where a parametrized layer gives the matrix it multiplies by.
        state[name] = getattr(model.get_submodule(path), leaf).detach()
    plain.load_state_dict(state)
    return plain.to(model.bins.device).train(model.training)


def _matrices(part: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield the layer and the name of every matrix of a part that rows are multiplied by, routers left out."""
    for path, module in list(part.named_modules()):
        if "router" in path.split(".") or "parametrizations" in path.split("."):
            continue
        for name, parameter in list(module.named_parameters(recurse=False)):
            if (isinstance(module, nn.Linear) and parameter.ndim == 2) or parameter.ndim > 2:
                yield module, name


def _is_scaled(model: nn.Module) -> bool:
    return any(parametrize.is_parametrized(module) for module in model.modules())
