"""Dynamics that read the past: a causal Transformer over the (latent, action) pairs of one episode.

Each step is a token, made of its latent, its action and the task. A token attends to itself and to the `context` tokens
before it, with a learned weight per head and distance. Distances are all that a position can mean in a window that
moves along an episode, and no distance occurs in acting that training has not shown. The window limits attention, and
what lies before the first token of a past is lost, however many layers there are.

The real past is computed once (`remember`). A rollout then adds one token per step (`step`) and keeps its keys and
values. The keys and values of the past are shared by all samples of an environment and never copied.

Source: Vaswani et al. (arXiv 1706.03762); weights by distance: T5 (arXiv 1910.10683); normalisation before each part:
Xiong et al. (arXiv 2002.04745); Transformers as world models: STORM (arXiv 2310.09615).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.model.layers import MLP, Block, Mish, SimNorm, TaskInput
from pipeline.systems.scalezero.experts import ExpertLayer


class KeysValues(NamedTuple):
    """What attention reads of some tokens in one layer."""

    keys: Tensor  # (N, H, tokens, D / H)
    values: Tensor  # (N, H, tokens, D / H)


class Memory(NamedTuple):
    """The carry of a rollout: the real past, and the steps that the rollout has added."""

    past: tuple[KeysValues, ...]  # per layer, of W real steps
    unseen: Tensor  # (N, W) bool, real steps that count for nothing
    own: tuple[tuple[KeysValues, ...], ...]  # per layer and step of the rollout, a token per sample: (N, H, P, D / H)
    steps: int  # added so far, also those that have left the window
    hidden: Tensor  # (N, D) or (P, N, D), the Transformer's output at the newest step; 0 where there was none


class Conditioning(NamedTuple):
    """What n tasks give the Transformer. It is stale once the weights change."""

    embed: TaskInput
    experts: tuple[Any, ...]  # per layer, the experts that the tasks choose; None where there are none, or rows choose

    def take(self, rows: Tensor) -> Conditioning:
        """Repeat the tasks as `rows` (B,) says."""
        experts = (chosen if chosen is None else chosen.take(rows) for chosen in self.experts)
        return Conditioning(self.embed.take(rows), tuple(experts))


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward part or experts, each normalised before and added to its input.

    Args:
        history: sizes.
        experts: what replaces the feed-forward part, if anything.
        task_dim: E, for experts chosen by the task.
    """

    def __init__(self, history: config.History, experts: config.Experts | None, task_dim: int):
        super().__init__()
        dim = history.dim
        self.before_attention = nn.LayerNorm(dim)
        self.qkv = Block(dim, 3 * dim, None)
        self.out = Block(dim, dim, None)
        self.distance = nn.Parameter(torch.zeros(history.heads, history.context + 1))  # added to attention scores
        self.before_feed = nn.LayerNorm(dim)
        if experts is None:
            self.feed = nn.Sequential(Block(dim, history.mlp_dim, Mish()), Block(history.mlp_dim, dim, None))
        else:
            self.feed = ExpertLayer(dim, experts.hidden, experts, task_dim)

    def condition(self, task_emb: Tensor) -> Any:
        """Return the experts that the tasks (n, E) choose; None where there are none, or rows choose."""
        return self.feed.condition(task_emb) if isinstance(self.feed, ExpertLayer) else None

    def queries_keys_values(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return three times (N, H, L, D / H) for tokens x (L, N, D)."""
        found = self.qkv(self.before_attention(x).flatten(0, 1))
        q, k, v = found.view(*x.shape[:2], 3, len(self.distance), -1).permute(2, 1, 3, 0, 4)
        return q, k, v

    def finish(self, x: Tensor, attended: Tensor, experts: Any) -> Tensor:
        """Add to tokens x (L, N, D) the output of attention (N, H, L, D / H), and then that of the feed-forward part.

        The rows of experts are the tokens one after the other, N each; `experts` is what `condition` gave for N tasks.
        """
        rows = x.flatten(0, 1)
        rows = rows + self.out(attended.permute(2, 0, 1, 3).reshape(rows.shape))
        h = self.before_feed(rows)
        h = self.feed(h, experts) if isinstance(self.feed, ExpertLayer) else self.feed(h)
        return (rows + h).view(x.shape)


class HistoryDynamics(nn.Module):
    """The Transformer that predicts the next latent, through SimNorm.

    Every method takes `tasks`, which `condition` has returned.

    Args:
        sizes: of the world model.
        history: of the Transformer.
    """

    def __init__(self, sizes: config.Model, history: config.History):
        super().__init__()
        latent, task, experts = sizes.latent_dim, sizes.task_dim, sizes.experts
        if experts is not None and "dynamics" not in experts.parts:
            experts = None
        self.embed = MLP(latent, task, sizes.action_dim, [], history.dim)
        self.layers = nn.ModuleList(TransformerLayer(history, experts, task) for _ in range(history.layers))
        self.norm = nn.LayerNorm(history.dim)
        self.head = Block(history.dim, latent, SimNorm(sizes.simnorm_dim))
        self.context = history.context

    def condition(self, task_emb: Tensor, columns: dict[str, Tensor] | None = None) -> Conditioning:
        """Compute what the tasks (n, E) give the Transformer; `columns` is for other networks."""
        return Conditioning(self.embed.condition(task_emb), tuple(layer.condition(task_emb) for layer in self._layers))

    def whole(self, tasks: Conditioning, z: Tensor, a: Tensor, length: Tensor) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """Compute a sequence of tokens at once.

        Args:
            tasks: of N rows.
            z: (L, N, Z)
            a: (L, N, A)
            length: (N,) how many of the newest tokens count; the others are seen by none but themselves.

        Returns:
            hidden (L, N, D) after every token, and keys and values of every layer.
        """
        x = self.embed(tasks.embed, z, a)
        # What a token (third dim) may not see (fourth dim): steps that do not count, later ones, those too far back.
        position = torch.arange(len(x), device=x.device)
        distance = position.unsqueeze(1) - position
        unseen = _unseen(length, len(x)).unsqueeze(1) & (distance != 0)  # (N, L, L)
        unseen = (unseen | (distance < 0) | (distance > self.context)).unsqueeze(1)
        distance = distance.clamp(0, self.context)
        kept = []
        for layer, experts in zip(self._layers, tasks.experts, strict=True):
            q, k, v = layer.queries_keys_values(x)
            score = layer.distance[:, distance].masked_fill(unseen, float("-inf"))  # (N, H, L, L)
            attended = F.scaled_dot_product_attention(q, k, v, attn_mask=score.to(q.dtype))
            x = layer.finish(x, attended, experts)
            kept.append(KeysValues(k, v))
        return self.norm(x), tuple(kept)

    def remember(self, tasks: Conditioning, z: Tensor, a: Tensor, length: Tensor) -> Memory:
        """Begin a rollout after a real past.

        Args:
            tasks: of N rows.
            z: (W, N, Z) latents, W at most `context`.
            a: (W, N, A)
            length: (N,) how many of the newest of them count.
        """
        hidden, kept = self.whole(tasks, z, a, length)
        newest = hidden[-1].masked_fill((length == 0).unsqueeze(1), 0.0)
        return Memory(kept, _unseen(length, len(z)), ((),) * len(kept), 0, newest)

    def begin(self, tasks: Conditioning) -> Memory:
        """Begin a rollout without a past."""
        n, dim = tasks.embed.bias.shape
        count, distance = len(self.layers), self._layers[0].distance
        nothing = distance.new_zeros(n, len(distance), 0, dim // len(distance))
        unseen = torch.zeros(n, 0, dtype=torch.bool, device=nothing.device)
        return Memory((KeysValues(nothing, nothing),) * count, unseen, ((),) * count, 0, nothing.new_zeros(n, dim))

    def step(self, tasks: Conditioning, z: Tensor, a: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Predict the latents after actions a (..., N, A) at latents z, and remember both.

        Args:
            tasks: of N rows.
            z: (..., N, Z), with as many dims in front as `a`, or none.
            a: (..., N, A), of the same samples at every step of a rollout.
            memory: of the rollout so far.
        """
        x = self.embed(tasks.embed, z, a)
        shape = x.shape
        x = x.reshape(-1, *shape[-2:])  # (P, N, D)
        kept = []
        parts = zip(self._layers, tasks.experts, memory.past, memory.own, strict=True)
        for layer, experts, past, own in parts:
            q, k, v = layer.queries_keys_values(x)
            own = (*own, KeysValues(k, v))[-(self.context + 1) :]
            attended = _attend(q, past, memory.unseen, own, memory.steps, layer.distance)
            x = layer.finish(x, attended, experts)
            kept.append(own)
        hidden = self.norm(x).view(shape)
        z = self.head(hidden.flatten(0, -2)).view(*shape[:-1], -1)
        return z, memory._replace(own=tuple(kept), steps=memory.steps + 1, hidden=hidden)

    @property
    def _layers(self) -> list[TransformerLayer]:
        return cast("list[TransformerLayer]", list(self.layers))


def _attend(
    q: Tensor, past: KeysValues, unseen: Tensor, own: tuple[KeysValues, ...], steps: int, distance: Tensor
) -> Tensor:
    """Attend from the newest tokens of a rollout to the real past and to each sample's own tokens.

    The samples of an environment are the rows of one product with its past; torch's own attention would need a copy of
    the past per sample.

    Args:
        q: (N, H, P, D / H)
        past: of W steps.
        unseen: (N, W) bool.
        own: of the last steps, the newest included: (N, H, P, D / H) each.
        steps: of the rollout before this one.
        distance: (H, context + 1)

    Returns:
        (N, H, P, D / H)
    """
    q = q * q.shape[-1] ** -0.5
    # Scores of the past, without the steps that have left the window.
    num_past = past.keys.shape[2]
    gone = min(max(num_past + steps + 1 - distance.shape[1], 0), num_past)
    keys, values = past.keys[:, :, gone:], past.values[:, :, gone:]
    weight = distance[:, steps + 1 : steps + 1 + num_past - gone].flip(1).unsqueeze(1)  # the oldest first
    to_past = (q @ keys.transpose(-1, -2) + weight).masked_fill(unseen[:, None, None, gone:], float("-inf"))
    # Scores of each sample's own tokens.
    own_keys, own_values = (torch.stack(parts, dim=-2) for parts in zip(*own, strict=True))  # (N, H, P, steps, D / H)
    to_own = (q.unsqueeze(-2) * own_keys).sum(-1) + distance[:, : len(own)].flip(1).unsqueeze(1)
    # One softmax over both.
    share = torch.cat([to_past, to_own], dim=-1).softmax(-1)
    of_past, of_own = share.split([num_past - gone, len(own)], dim=-1)
    return of_past @ values + (of_own.unsqueeze(-1) * own_values).sum(-2)


def _unseen(length: Tensor, count: int) -> Tensor:
    """Return (N, count) bool: all but the `length` (N,) newest of `count` tokens."""
    return torch.arange(count, device=length.device) < (count - length).unsqueeze(1)
