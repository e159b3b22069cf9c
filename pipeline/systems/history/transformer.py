"""Dynamics that see the past: a causal Transformer over the (latent, action) pairs of one episode.

Each step is a token, made of its latent, its action and the task. A token sees itself and `context` tokens before it,
by learned weights per head and distance: distances are all that positions can tell in a window that moves along an
episode, and no distance is ever asked for that training has not shown. The window is one of attention; what lies before
the first token of a past is gone, however many layers there are.

The real past is computed once, whole (`remember`). A rollout then adds one token per step (`step`), whose keys and
values it keeps, while those of the past are shared by all samples of an environment and never copied.

Source: Vaswani et al. (arXiv 1706.03762); weights by distance: T5 (arXiv 1910.10683); normalisation before each part:
Xiong et al. (arXiv 2002.04745); Transformers as world models: STORM (arXiv 2310.09615).
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import config
from pipeline.model.blocks import MLP, Block, Conditioned, Layer, Mish, SimNorm
from pipeline.model.compute import PLAIN, Compute
from pipeline.model.experts import ExpertLayer, ReadyExperts, Routing


class KeysValues(NamedTuple):
    """What attention reads of some tokens in one layer; their number stands third."""

    keys: Tensor  # (N, H, tokens, D / H)
    values: Tensor  # (N, H, tokens, D / H)


class Memory(NamedTuple):
    """What a rollout goes on from: the real past, and the steps it has added itself."""

    past: tuple[KeysValues, ...]  # per layer, of W real steps
    unseen: Tensor  # (N, W) bool, real steps that count for nothing
    own: tuple[tuple[KeysValues, ...], ...]  # per layer and step of the rollout, a token per sample: (N, H, P, D / H)
    steps: int  # added so far, those that have left the window included
    hidden: Tensor  # (N, D) or (P, N, D), what the newest step has left; 0 where there was none


class Norm(NamedTuple):
    """A LayerNorm that is ready for use."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the last dim."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias)


class ReadyLayer(NamedTuple):
    """One layer of the Transformer, its weights ready for use."""

    before_attention: Norm
    qkv: Layer
    out: Layer
    distance: Tensor  # (H, context + 1), what is added to the score of a token so many steps before
    before_feed: Norm
    feed: tuple[Layer, ...] | ReadyExperts
    notes: list[Routing] | None = None  # where its calls note which rows went to which expert; None: nowhere

    def take(self, rows: Tensor) -> ReadyLayer:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(feed=self.feed.take(rows)) if isinstance(self.feed, ReadyExperts) else self

    def feed_forward(self, x: Tensor, compute: Compute) -> Tensor:
        """What is to be added to rows x (L N, D), L tokens of each of N environments one after the other."""
        h = self.before_feed(x)
        if isinstance(self.feed, ReadyExperts):
            h, routing = self.feed(h.to(self.feed.up.dtype))
            if self.notes is not None:
                self.notes.append(routing)
            return h.to(x.dtype)
        for part in self.feed:
            h = part(h, compute, None)
        return h


class ConditionedHistory(NamedTuple):
    """The Transformer, told n tasks and ready for use. It is stale once its weights change."""

    embed: Conditioned
    layers: tuple[ReadyLayer, ...]
    norm: Norm
    head: Layer
    compute: Compute

    @property
    def bias(self) -> Tensor:
        """(n, D), a row per task."""
        return self.embed.bias

    def take(self, rows: Tensor) -> ConditionedHistory:
        """Repeat the tasks as `rows` (B,) says."""
        return self._replace(embed=self.embed.take(rows), layers=tuple(layer.take(rows) for layer in self.layers))

    def noting(self, name: str, notes: dict[str, list[Routing]]) -> ConditionedHistory:
        """Return this with every layer with experts noting its calls under `<name>.<layer>`."""
        layers = (
            layer._replace(notes=notes.setdefault(f"{name}.{i}", [])) if isinstance(layer.feed, ReadyExperts) else layer
            for i, layer in enumerate(self.layers)
        )
        return self._replace(layers=tuple(layers))

    def whole(self, z: Tensor, a: Tensor, length: Tensor) -> tuple[Tensor, tuple[KeysValues, ...]]:
        """Compute a sequence of tokens at once.

        Args:
            z: (L, N, Z)
            a: (L, N, A)
            length: (N,) how many of the newest tokens count; the others are seen by none but themselves.

        Returns:
            hidden (L, N, D) after every token, and keys and values of every layer.
        """
        x = self.embed(z, a)
        distance = torch.arange(len(x), device=x.device).unsqueeze(1) - torch.arange(len(x), device=x.device)
        unseen = _unseen(length, len(x)).unsqueeze(1) & (distance != 0)  # (N, L, L)
        context = self.layers[0].distance.shape[1] - 1
        unseen = (unseen | (distance < 0) | (distance > context)).unsqueeze(1)
        distance = distance.clamp(0, context)
        kept = []
        for layer in self.layers:
            q, k, v = self._queries_keys_values(layer, x)
            score = layer.distance[:, distance].masked_fill(unseen, float("-inf"))  # (N, H, L, L)
            seen = F.scaled_dot_product_attention(q, k, v, attn_mask=score.to(q.dtype))
            x = self._finish_layer(layer, x, seen)
            kept.append(KeysValues(k, v))
        return self.norm(x), tuple(kept)

    def remember(self, z: Tensor, a: Tensor, length: Tensor) -> Memory:
        """Begin a rollout after a real past.

        Args:
            z: (W, N, Z) latents, W at most `context`.
            a: (W, N, A)
            length: (N,) how many of the newest of them count.
        """
        hidden, kept = self.whole(z, a, length)
        newest = hidden[-1].masked_fill((length == 0).unsqueeze(1), 0.0)
        return Memory(kept, _unseen(length, len(z)), ((),) * len(kept), 0, newest)

    def begin(self) -> Memory:
        """Begin a rollout for n tasks without a past."""
        n, width = self.bias.shape
        heads = self.layers[0].distance.shape[0]
        nothing = self.layers[0].distance.new_zeros(n, heads, 0, width // heads)
        unseen = torch.zeros(n, 0, dtype=torch.bool, device=nothing.device)
        count = len(self.layers)
        return Memory((KeysValues(nothing, nothing),) * count, unseen, ((),) * count, 0, nothing.new_zeros(n, width))

    def step(self, z: Tensor, a: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Predict the latents after actions a (..., N, A) at latents z, and remember both.

        Args:
            z: (..., N, Z), with as many dims in front as `a`, or none.
            a: (..., N, A), of the same samples at every step of a rollout.
            memory: of the rollout so far.
        """
        x = self.embed(z, a)
        shape = x.shape
        x = x.reshape(-1, *shape[-2:])  # (P, N, D)
        own = []
        for layer, past, steps in zip(self.layers, memory.past, memory.own, strict=True):
            q, k, v = self._queries_keys_values(layer, x)
            window = layer.distance.shape[1]
            steps = (*steps, KeysValues(k, v))[-window:]
            seen = _attend(q, past, memory.unseen, steps, memory.steps, layer.distance)
            x = self._finish_layer(layer, x, seen)
            own.append(steps)
        hidden = self.norm(x).view(shape)
        z = self.head(hidden.flatten(0, -2), self.compute, None).view(*shape[:-1], -1)
        return z, memory._replace(own=tuple(own), steps=memory.steps + 1, hidden=hidden)

    def _queries_keys_values(self, layer: ReadyLayer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return three times (N, H, L, D / H) for tokens x (L, N, D)."""
        found = layer.qkv(layer.before_attention(x).flatten(0, 1), self.compute, None)
        heads = layer.distance.shape[0]
        q, k, v = found.view(*x.shape[:2], 3, heads, -1).permute(2, 1, 3, 0, 4)
        return q, k, v

    def _finish_layer(self, layer: ReadyLayer, x: Tensor, seen: Tensor) -> Tensor:
        """Add to tokens x (L, N, D) what they have seen (N, H, L, D / H), and what the layer makes of it."""
        rows = x.flatten(0, 1)
        rows = rows + layer.out(seen.permute(2, 0, 1, 3).reshape(rows.shape), self.compute, None)
        return (rows + layer.feed_forward(rows, self.compute)).view(x.shape)


class TransformerLayer(nn.Module):
    """Attention, then a feed-forward part or experts, each normalised before and added to what came in.

    Args:
        history: sizes.
        experts: what stands in the place of the feed-forward part, if anything.
        task_dim: E, for experts chosen by the task.
    """

    def __init__(self, history: config.History, experts: config.Experts | None, task_dim: int):
        super().__init__()
        dim = history.dim
        self.before_attention = nn.LayerNorm(dim)
        self.qkv = Block(dim, 3 * dim, None)
        self.out = Block(dim, dim, None)
        self.distance = nn.Parameter(torch.zeros(history.heads, history.context + 1))
        self.before_feed = nn.LayerNorm(dim)
        if experts is None:
            self.feed = nn.Sequential(Block(dim, history.mlp_dim, Mish()), Block(history.mlp_dim, dim, None))
        else:
            self.feed = ExpertLayer(dim, experts.hidden, experts, task_dim)

    def ready(self, task_emb: Tensor, compute: Compute) -> ReadyLayer:
        """Make the weights ready to be computed as `compute` says; experts chosen by the task are chosen here."""
        return ReadyLayer(
            _ready_norm(self.before_attention),
            self.qkv.ready(task_emb, compute),
            self.out.ready(task_emb, compute),
            self.distance,
            _ready_norm(self.before_feed),
            self.feed.ready(task_emb, compute)
            if isinstance(self.feed, ExpertLayer)
            else tuple(block.ready(task_emb, compute) for block in cast("list[Block]", list(self.feed))),
        )


class HistoryDynamics(nn.Module):
    """The Transformer that predicts the next latent, through SimNorm.

    Args:
        sizes: of the world model.
        history: its own.
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

    def condition(self, task_emb: Tensor, compute: Compute = PLAIN) -> ConditionedHistory:
        """Tell the Transformer its tasks (n, E), and make its weights ready to be computed as `compute` says."""
        return ConditionedHistory(
            self.embed.condition(task_emb, compute),
            tuple(layer.ready(task_emb, compute) for layer in cast("list[TransformerLayer]", list(self.layers))),
            _ready_norm(self.norm),
            self.head.ready(task_emb, compute),
            compute,
        )


def _attend(
    q: Tensor, past: KeysValues, unseen: Tensor, own: tuple[KeysValues, ...], steps: int, distance: Tensor
) -> Tensor:
    """Attend from the newest tokens of a rollout to the real past and to each sample's own tokens.

    The samples of an environment are the rows of one product with its past. Handing all of it to torch's attention
    would need the past once per sample.

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
    num_past = past.keys.shape[2]
    gone = min(max(num_past + steps + 1 - distance.shape[1], 0), num_past)  # of the past, have left the window
    keys, values = past.keys[:, :, gone:], past.values[:, :, gone:]
    weight = distance[:, steps + 1 : steps + 1 + num_past - gone].flip(1).unsqueeze(1)  # the oldest first
    to_past = (q @ keys.transpose(-1, -2) + weight).masked_fill(unseen[:, None, None, gone:], float("-inf"))
    own_keys, own_values = (torch.stack(parts, dim=-2) for parts in zip(*own, strict=True))  # (N, H, P, steps, D / H)
    to_own = (q.unsqueeze(-2) * own_keys).sum(-1) + distance[:, : len(own)].flip(1).unsqueeze(1)
    share = torch.cat([to_past, to_own], dim=-1).softmax(-1)
    of_past, of_own = share.split([num_past - gone, len(own)], dim=-1)
    return of_past @ values + (of_own.unsqueeze(-1) * own_values).sum(-2)


def _unseen(length: Tensor, count: int) -> Tensor:
    """Return (N, count) bool: all but the `length` (N,) newest of `count` tokens."""
    return torch.arange(count, device=length.device) < (count - length).unsqueeze(1)


def _ready_norm(norm: nn.LayerNorm) -> Norm:
    return Norm(norm.weight, norm.bias)
