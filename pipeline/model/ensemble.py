"""The ensemble of Q: its members one by one on a CPU, and stacked on a GPU, where few large products are fastest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from pipeline.model import products
from pipeline.model.device import launches, to_device
from pipeline.model.layers import MLP, effective_weight, normalised

Members = Sequence[int] | Tensor  # which members: numbers, or an index (M',) that lies on their device
_ALIGNED = 8  # numbers: the members' matrices begin where products read fastest


class StackedLayer(NamedTuple):
    """One layer of M' members."""

    weight: Tensor  # (M', out, in)
    bias: Tensor  # (M', 1, out)
    norm: tuple[Tensor, Tensor] | None  # (M', 1, out) each; None for the output layer


class Stacked(NamedTuple):
    """M' members of an ensemble with the part of n tasks computed. It is stale once the weights change."""

    weight_x: Tensor  # (M', H, X)
    weight_a: Tensor  # (M', H, A)
    tasks: Tensor  # (M', n, H): W_e e + b
    layers: tuple[StackedLayer, ...]  # the first is that of the three above

    def take(self, rows: Tensor) -> Stacked:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(tasks=self.tasks.index_select(1, rows))

    def members(self, which: slice) -> Stacked:
        """Return some of the members."""

        def cut(layer: StackedLayer) -> StackedLayer:
            norm = None if layer.norm is None else (layer.norm[0][which], layer.norm[1][which])
            return StackedLayer(layer.weight[which], layer.bias[which], norm)

        layers = tuple(cut(layer) for layer in self.layers)
        return Stacked(self.weight_x[which], self.weight_a[which], self.tasks[which], layers)


class QEnsemble(nn.ModuleList):
    """M independent MLPs of one form."""

    def condition(self, task_emb: Tensor, columns: dict[str, Tensor], members: Members | None = None) -> Any:
        """Compute what the tasks (n, E) contribute to some members: by member, or `Stacked`.

        Args:
            task_emb: (n, E)
            columns: as in `MLP.condition`.
            members: which; None for all. With an index they are stacked, and so they are on a GPU.
        """
        if self._stacks(task_emb, members):
            return self._stacked(task_emb, members)
        chosen = range(len(self)) if members is None else _numbers(members)
        return {member: cast("MLP", self[member]).condition(task_emb, columns) for member in chosen}

    def pick(self, tasks: Any, members: Sequence[Members] | Tensor) -> list[Any]:
        """Return parts of what `condition` gave for all members: one for each of these selections of equally many.

        Args:
            tasks: from `condition`.
            members: numbers of members for each selection, or an index (selections, M').
        """
        if not isinstance(tasks, Stacked):
            return [{member: tasks[member] for member in _numbers(chosen)} for chosen in members]
        if not isinstance(members, Tensor):
            members = to_device(torch.tensor([_numbers(chosen) for chosen in members]), tasks.tasks.device)
        count, each = members.shape
        index = members.flatten()

        def select(layer: StackedLayer) -> StackedLayer:
            norm = layer.norm and (layer.norm[0].index_select(0, index), layer.norm[1].index_select(0, index))
            return StackedLayer(layer.weight.index_select(0, index), layer.bias.index_select(0, index), norm)

        first, *rest = tasks.layers
        x, a, of_tasks = (part.index_select(0, index) for part in tasks[:3])
        norm = first.norm and (first.norm[0].index_select(0, index), first.norm[1].index_select(0, index))
        layers = (StackedLayer(x, of_tasks, norm), *map(select, rest))  # of the first nothing but the norm is read
        chosen = Stacked(x, a, of_tasks, layers)
        return [chosen.members(slice(i * each, (i + 1) * each)) for i in range(count)]

    def forward(self, tasks: Any, z: Tensor, a: Tensor) -> Tensor:
        """Evaluate the members in `tasks` at z (..., n, Z), a (..., n, A): logits (M', ..., n, K)."""
        if not isinstance(tasks, Stacked):
            return torch.stack([self[member](task, z, a) for member, task in tasks.items()])
        count, kind = len(tasks.weight_x), tasks.weight_x.dtype
        x, act = (part.flatten(0, -2).to(kind).expand(count, -1, -1) for part in (z, a))
        h, of_tasks, weight_a = torch.bmm(x, tasks.weight_x.mT), tasks.tasks, tasks.weight_a.mT
        if z.ndim < a.ndim:  # all samples share z: it belongs to the tasks' part
            h, of_tasks = torch.bmm(act, weight_a), of_tasks + h
        else:
            h = torch.baddbmm(h, act.to(h.dtype), weight_a.to(h.dtype))
        activation = cast("MLP", self[0]).blocks[0].activation
        first, *rest = tasks.layers
        h = normalised(h, first.norm, activation, of_tasks)
        for layer in rest:
            h = torch.baddbmm(layer.bias.to(kind), h.to(kind), layer.weight.mT)
            h = normalised(h, layer.norm, activation)
        return h.view(count, *a.shape[:-1], -1)

    def _stacks(self, task_emb: Tensor, members: Members | None) -> bool:
        if not (isinstance(members, Tensor) or launches(task_emb)) or (members is not None and not len(members)):
            return False
        return all(type(member) is MLP for member in self)  # other systems have networks of other forms

    def _stacked(self, task_emb: Tensor, members: Members | None) -> Stacked:
        numbers = range(len(self)) if members is None or isinstance(members, Tensor) else members
        # All numbers of a member in a row: stacking and choosing are one operation each, and the rest is views.
        parts = [self._parts(cast("MLP", self[number])) for number in numbers]
        sizes = [part.numel() for part in parts[0]]
        flat = torch.cat([part.flatten() for member in parts for part in member]).view(len(parts), -1)
        if isinstance(members, Tensor):
            flat = flat.index_select(0, members)
        low = products.lowered(flat)
        rows = flat.split(sizes, 1)
        low_rows = rows if low is flat else low.split(sizes, 1)
        layers, place = [], 0
        for block in cast("MLP", self[0]).blocks:
            weight = low_rows[place].unflatten(1, parts[0][place].shape)
            bias, *norm = (row.unsqueeze(1) for row in rows[place + 1 : place + (2 if block.norm is None else 4)])
            layers.append(StackedLayer(weight, bias, (norm[0], norm[1]) if norm else None))
            place += 2 + len(norm)
        weight_x, weight_e, weight_a = layers[0].weight.split(cast("MLP", self[0]).widths, dim=2)
        emb = task_emb.to(weight_e.dtype).expand(len(weight_e), -1, -1)
        return Stacked(weight_x, weight_a, torch.baddbmm(layers[0].bias.to(emb.dtype), emb, weight_e.mT), tuple(layers))

    @staticmethod
    def _parts(member: MLP) -> list[Tensor]:
        """Return weight, bias and what normalises of every layer, and zeros up to a multiple of `_ALIGNED`."""
        found: list[Tensor] = []
        for block in member.blocks:
            linear: Any = block.linear
            found += [effective_weight(linear), linear.bias]
            found += [] if block.norm is None else [block.norm.weight, block.norm.bias]
        return [*found, found[0].new_zeros(-sum(part.numel() for part in found) % _ALIGNED)]


def _numbers(members: Members) -> list[int]:
    """Return members as numbers; of an index, only where no GPU has to be waited for."""
    return members.tolist() if isinstance(members, Tensor) else list(members)
