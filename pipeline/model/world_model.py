"""The world model: encode, next, reward, policy, q. Tensors in, tensors out."""

# No `from __future__ import annotations`: the Hub's mixin reads the type of `config` to rebuild it from config.json.
import copy
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, cast

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pipeline import config
from pipeline.model.ensemble import Members, QEnsemble
from pipeline.model.layers import MLP, SimNorm
from pipeline.model.math import Policy, squashed_gaussian
from pipeline.model.task_table import TaskTable

# Name of a part in `adapt.parts`, and of its module. The linear layers of a part are `<module>.<i>.linear`
# (`q_heads.<m>.<i>.linear`); saved files hold these names, so they must not change.
PARTS = {
    "encoder": "encoder",
    "dynamics": "dynamics",
    "reward": "reward_head",
    "policy": "policy_head",
    "q": "q_heads",
}
_CLAMP = 10.0  # largest normalised observation, in standard deviations


class TaskContext(NamedTuple):
    """All task inputs of the model for n rows, computed once and used at every step of a rollout or plan.

    The first seven hold what each network's `condition` returned. They are stale once the weights change.
    """

    encoder: Any
    dynamics: Any
    reward: Any
    policy: Any
    q: Any  # by Q member, or of all of them stacked
    target_q: Any
    termination: Any | None
    action_mask: Tensor  # (n, A) 1 on real action dims
    discount: Tensor  # (n,)
    obs_mean: Tensor | None  # (n, O); None where observations are taken as they come
    obs_std: Tensor | None  # (n, O)

    def take(self, rows: Tensor) -> "TaskContext":
        """Select rows (B,), as indexing does: row i of the result is that of task rows[i]."""
        return TaskContext(*(_take(part, rows) for part in self))


def _take(part: Any, rows: Tensor) -> Any:
    """Select rows of one part of a context."""
    if isinstance(part, dict):
        return {member: one.take(rows) for member, one in part.items()}
    return part.index_select(0, rows) if isinstance(part, Tensor) else None if part is None else part.take(rows)


def plain_network(part: str, *sizes: Any, **more: Any) -> nn.Module:
    """Make the network of a part, a key of `PARTS`: an MLP for each of them."""
    return MLP(*sizes, **more)


class WorldModel(nn.Module, PyTorchModelHubMixin, library_name="eft", tags=["world-model", "reinforcement-learning"]):
    """Encoder, latent dynamics, reward, policy prior and Q ensemble, all conditioned on a task embedding.

    Every method takes a `TaskContext` of n rows and inputs whose last two dims are (n, width); further dims in front
    (time, plan samples) are free.

    A rollout is `z, carry = begin(...)`, then `z, carry = next(z, a, ctx, carry)`. Here z is the latent and the carry
    is None. In a subclass whose dynamics need more than the present latent, the carry holds that, and the heads
    (reward, policy, Q, termination) may read a wider z that contains the latent.

    Args:
        config: sizes.
        network: makes the network of a part, called with the part's name and the arguments of `MLP`.
    """

    bins: Tensor  # (K,) centres of the two-hot bins, symlog units

    def __init__(self, config: config.Model, network: Callable[..., Any] = plain_network):
        super().__init__()
        self.config = config
        task, a, latent, state = config.task_dim, config.action_dim, config.latent_dim, self.state_dim(config)
        hidden = [config.mlp_dim] * 2
        enc_hidden = [config.enc_dim] * max(config.num_enc_layers - 1, 1)
        simnorm = SimNorm(config.simnorm_dim)
        self.encoder = network("encoder", config.obs_dim, task, 0, enc_hidden, latent, simnorm)
        self.dynamics = self.make_dynamics(network)
        self.reward_head = network("reward", state, task, a, hidden, config.num_bins)
        self.policy_head = network("policy", state, task, 0, hidden, 2 * a)
        self.q_heads = QEnsemble(network("q", state, task, a, hidden, config.num_bins) for _ in range(config.num_q))
        for head in (self.reward_head, *cast("list[MLP]", list(self.q_heads))):
            nn.init.zeros_(head.blocks[-1].linear.weight)
        self.target_q_heads = _frozen_copy(self.q_heads)
        self.termination_head = None
        if config.termination:
            self.termination_head = MLP(state, task, a, hidden, 1)
            nn.init.zeros_(self.termination_head.blocks[-1].linear.weight)
        self.register_buffer("bins", self._bins(torch.get_default_dtype()), persistent=False)

    def _bins(self, dtype: torch.dtype) -> Tensor:
        return torch.linspace(self.config.bin_min, self.config.bin_max, self.config.num_bins, dtype=dtype)

    def of_dtype(self, dtype: torch.dtype) -> "WorldModel":
        """Convert this model to a dtype, whatever torch's default was when it was made."""
        self.to(dtype)
        self.bins = self._bins(dtype).to(self.bins.device)
        return self

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **more: Any) -> Any:
        """Load as the Hub's mixin does, but strictly: by default it would leave missing weights random."""
        return super()._from_pretrained(strict=strict, **more)

    @staticmethod
    def state_dim(config: config.Model) -> int:
        """Return the width of z, the input of reward, policy and Q: here that of the latent."""
        return config.latent_dim

    def make_dynamics(self, network: Callable[..., Any]) -> Any:
        """Make the dynamics."""
        sizes = self.config
        hidden, simnorm = [sizes.mlp_dim] * 2, SimNorm(sizes.simnorm_dim)
        return network(
            "dynamics", sizes.latent_dim, sizes.task_dim, sizes.action_dim, hidden, sizes.latent_dim, simnorm
        )

    def context(
        self,
        table: TaskTable,
        task: Tensor,
        phrasing: Tensor | None = None,
        q: Members | None = None,
        target_q: Members | None = None,
        parts: Collection[str] = PARTS,
    ) -> TaskContext:
        """Compute what the tasks contribute to every network, once per text.

        How many texts are computed follows from sizes alone, never from which tasks they are: a GPU need not be asked.

        Args:
            table: the known tasks.
            task: (n,) rows of the table.
            phrasing: (n,) in [0, P), which phrasing of its text each task is given; None for the canonical one.
            q: the Q members to be evaluated; None for all.
            target_q: the target Q members to be evaluated; None for all.
            parts: the networks to be evaluated, beside target Q and terminations.
        """
        (num_tasks, num_phrasings, _), columns, rows = table.embeddings.shape, table.columns, task
        if phrasing is not None:
            emb, rows = table.embeddings.flatten(0, 1), task * num_phrasings + phrasing
            columns = {
                name: column.unsqueeze(1).expand(-1, num_phrasings).flatten() for name, column in columns.items()
            }
        elif num_tasks < len(task) or torch.is_grad_enabled():
            emb = table.embeddings[:, 0]
        else:
            emb, rows = table.embeddings[:, 0].index_select(0, task), None
            columns = {name: column.index_select(0, task) for name, column in columns.items()}
        networks: list[Any] = [
            self.get_submodule(PARTS[part]) if part in parts else None for part in PARTS if part != "q"
        ]
        conditioned = (
            *(None if network is None else network.condition(emb, columns) for network in networks),
            self.q_heads.condition(emb, columns, q),
            self.target_q_heads.condition(emb, columns, target_q),
            None if self.termination_head is None else self.termination_head.condition(emb, columns),
        )
        of_task = (table.action_mask, table.discount, table.obs_mean, table.obs_std)
        taken: list[Any] = [part if rows is None else _take(part, rows) for part in conditioned]
        return TaskContext(*taken, *(_take(part, task) for part in of_task))

    def at(self, z: Tensor, ctx: TaskContext) -> TaskContext:
        """Return the context for many actions at one z (n, Z): what z gives the first layers is computed once."""
        named = {"dynamics": self.dynamics, "reward": self.reward_head, "termination": self.termination_head}
        plain = {name: network for name, network in named.items() if type(network) is MLP}
        return ctx._replace(**{name: network.given(getattr(ctx, name), z) for name, network in plain.items()})

    def encode(self, obs: Tensor, ctx: TaskContext) -> Tensor:
        """Map observations (..., n, O), normalised by the statistics of each task's body, to latents (..., n, Z).

        Positions often vary by centimetres around a metre, too little for a small network without normalisation.
        """
        if ctx.obs_mean is not None and ctx.obs_std is not None:
            obs = ((obs - ctx.obs_mean) / ctx.obs_std).clamp(-_CLAMP, _CLAMP)
        return self.encoder(ctx.encoder, obs)

    def begin(self, obs: Tensor, ctx: TaskContext, past: Any = None) -> tuple[Tensor, Any]:
        """Begin a rollout at observations (n, O); return z (n, Z) and the carry.

        Args:
            obs: (n, O)
            ctx: of n rows.
            past: earlier steps, for a model that reads them; None for none.
        """
        return self.encode(obs, ctx), None

    def next(self, z: Tensor, a: Tensor, ctx: TaskContext, carry: Any = None) -> tuple[Tensor, Any]:
        """Take one step of a rollout: return the z (..., n, Z) after actions a (..., n, A) at z, and the new carry."""
        return self.dynamics(ctx.dynamics, z, a), carry

    def observed(self, obs: Tensor, action: Tensor, ctx: TaskContext, past: Any = None) -> Tensor:
        """Encode the real observations after each of T steps to z (T, n, Z), the target of the dynamics.

        Args:
            obs: (T + 1, n, O)
            action: (T, n, A)
            ctx: of n rows.
            past: as in `begin`.
        """
        return self.encode(obs[1:], ctx)

    def latent(self, z: Tensor) -> Tensor:
        """Return the latents contained in z: here z itself."""
        return z

    def reward(self, z: Tensor, a: Tensor, ctx: TaskContext) -> Tensor:
        """Predict the reward of one step as logits (..., n, K); `math.decode` turns them into numbers."""
        return self.reward_head(ctx.reward, z, a)

    def policy(self, z: Tensor, ctx: TaskContext, noise: Tensor | None = None) -> Policy:
        """Evaluate the policy prior at z (..., n, Z), with noise (..., n, A) standard normal; None for the mode."""
        raw = self.policy_head(ctx.policy, z)
        return squashed_gaussian(raw, ctx.action_mask, noise, self.config.log_std_min, self.config.log_std_max)

    def q(self, z: Tensor, a: Tensor, ctx: TaskContext, target: bool = False, members: Members | None = None) -> Tensor:
        """Evaluate Q members.

        Args:
            z: (..., n, Z)
            a: (..., n, A)
            ctx: of n rows.
            target: use the target networks.
            members: some of those that `ctx` was made for; None for all of them.

        Returns:
            (M', ..., n, K) logits; `math.decode` turns them into numbers.
        """
        heads, tasks = (self.target_q_heads, ctx.target_q) if target else (self.q_heads, ctx.q)
        return heads(tasks if members is None else heads.pick(tasks, [members])[0], z, a)

    def termination(self, z: Tensor, a: Tensor, ctx: TaskContext) -> Tensor:
        """Predict whether actions a (..., n, A) at z (..., n, Z) end the episode for good, as logits (..., n).

        Only for a model with `config.termination`. TD-MPC2 asks the next latent instead, which holds what the next
        observation shows: an end that does not show in it would be as likely after every action.
        """
        assert self.termination_head is not None
        return self.termination_head(ctx.termination, z, a).squeeze(-1)

    def sync_target(self) -> None:
        """Make the target Q heads a fresh copy of the online ones, low-rank adapters included.

        Needed after adapters were injected into `q_heads`, so that the target copies have them too.
        """
        self.target_q_heads = _frozen_copy(self.q_heads)

    @torch.no_grad()
    def update_target(self, tau: float) -> None:
        """Move the target Q heads by the fraction tau towards the online ones (exponential moving average)."""
        target, online = (tuple(heads.parameters()) for heads in (self.target_q_heads, self.q_heads))
        get_ema_multi_avg_fn(1 - tau)(target, online, 0)


def _frozen_copy(heads: QEnsemble) -> QEnsemble:
    """Copy an ensemble, without `requires_grad`."""
    return copy.deepcopy(heads).requires_grad_(False)


def draw_members(num_q: int, generator: torch.Generator) -> tuple[int, int]:
    """Draw two Q members at random without replacement."""
    first, second = torch.randperm(num_q, generator=generator, device=generator.device)[:2].tolist()
    return first, second
