"""The world model: encode, next, reward, policy, q. Tensors in, tensors out; it saves itself in Hub form."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from pipeline import config
from pipeline.model.blocks import MLP, Conditioned, SimNorm
from pipeline.model.clusters import Groups, ToldClusters, copies, tell
from pipeline.model.compute import PLAIN, Compute
from pipeline.model.experts import ExpertMLP, Routing, has_experts
from pipeline.model.history import ConditionedHistory, HistoryDynamics, Memory
from pipeline.model.policy import Policy, squashed_gaussian
from pipeline.model.q_ensemble import QEnsemble, make_target
from pipeline.systems.history.past import Past

# What `adapt.parts` calls a part, and the module that is it. The linear layers of a part are `<module>.<i>.linear`
# (`q_heads.<m>.<i>.linear`), with the number of the cluster before <i> where a part is copied per cluster: these names
# are in every saved file.
PARTS = {
    "encoder": "encoder",
    "dynamics": "dynamics",
    "reward": "reward_head",
    "policy": "policy_head",
    "q": "q_heads",
}


class TaskContext(NamedTuple):
    """Every network, told n tasks and ready for use. It is stale once the weights change."""

    encoder: Conditioned
    dynamics: Conditioned | ConditionedHistory
    reward: Conditioned
    policy: Conditioned
    q: tuple[Conditioned, ...]
    target_q: tuple[Conditioned, ...]
    termination: Conditioned | None = None

    def take(self, rows: Tensor) -> "TaskContext":
        """Repeat the tasks as `rows` (B,) says: row i of the result belongs to task rows[i]."""
        return TaskContext(
            self.encoder.take(rows),
            self.dynamics.take(rows),
            self.reward.take(rows),
            self.policy.take(rows),
            tuple(member.take(rows) for member in self.q),
            tuple(member.take(rows) for member in self.target_q),
            None if self.termination is None else self.termination.take(rows),
        )

    def noting(self) -> tuple["TaskContext", dict[str, list[Routing]]]:
        """Return this context, with every call of a network with experts noting where its rows went, and the notes.

        The notes are by name of the part, `q.0`, `q.1`, ... for the Q members, `dynamics.0`, ... for the
        layers of dynamics with history; empty for a model without experts.
        """
        notes: dict[str, list[Routing]] = {}

        def noting(name: str, told: Any) -> Any:
            if isinstance(told, Conditioned) and has_experts(told):
                return told._replace(notes=notes.setdefault(name, []))
            return told

        return self._replace(
            dynamics=noting("dynamics", self.dynamics)
            if isinstance(self.dynamics, Conditioned)
            else self.dynamics.noting("dynamics", notes),
            reward=noting("reward", self.reward),
            policy=noting("policy", self.policy),
            q=tuple(noting(f"q.{member}", told) for member, told in enumerate(self.q)),
        ), notes

    def biases(self) -> list[Tensor]:
        """Return the tensors that hold a row per task."""
        everyone = (self.encoder, self.dynamics, self.reward, self.policy, self.termination, *self.q)
        parts = [part for told in everyone for part in (told.parts if isinstance(told, ToldClusters) else (told,))]
        return [told.bias for told in parts if told is not None]


class WorldModel(nn.Module, PyTorchModelHubMixin, library_name="eft", tags=["world-model", "reinforcement-learning"]):
    """Encoder, latent dynamics, reward, policy prior and Q ensemble, all conditioned on a task embedding.

    Every method takes a `TaskContext` of n rows and inputs whose last two dims are (n, width); further dims in front
    (time, plan samples) are free.

    What dynamics, reward, policy and Q read is the latent (Z). With `config.history` the dynamics also see the steps
    before, which rollouts carry along as a `Memory`; where its backbone is shared, what all of them read is the state
    (Z + D), the latent with the Transformer's hidden state of the past behind it.

    Args:
        config: sizes. With `clusters`, the parts these name are one network per cluster, of a given number.

    Raises:
        ValueError: the number of clusters is yet to be found.
    """

    bins: Tensor  # (K,) centres of the two-hot bins, symlog units

    def __init__(self, config: config.Model):
        super().__init__()
        self.config = dataclasses.replace(config, clusters=None)
        task, a = config.task_dim, config.action_dim
        latent = state = config.latent_dim
        history = config.history
        self.shared = history is not None and history.backbone == "shared"
        if history is not None and self.shared:
            state += history.dim
        hidden = [config.mlp_dim] * 2
        enc_hidden = [config.enc_dim] * max(config.num_enc_layers - 1, 1)
        self.encoder = MLP(config.obs_dim, task, 0, enc_hidden, latent, SimNorm(config.simnorm_dim))
        if history is None:
            self.dynamics = self._mlp("dynamics")(latent, task, a, hidden, latent, SimNorm(config.simnorm_dim))
        else:
            self.dynamics = HistoryDynamics(config, history)
        self.reward_head = self._mlp("reward")(state, task, a, hidden, config.num_bins)
        self.policy_head = self._mlp("policy")(state, task, 0, hidden, 2 * a)
        make_q = partial(self._mlp("q"), state, task, a, hidden, config.num_bins)
        self.q_heads = QEnsemble(make_q() for _ in range(config.num_q))
        for head in (self.reward_head, *self.q_heads.members):
            nn.init.zeros_(head.blocks[-1].linear.weight)
        self.target_q_heads = make_target(self.q_heads)
        self.termination_head = None
        if config.termination:
            self.termination_head = MLP(state, task, 0, hidden, 1)
            nn.init.zeros_(self.termination_head.blocks[-1].linear.weight)
        bins = torch.linspace(config.bin_min, config.bin_max, config.num_bins)
        self.register_buffer("bins", bins, persistent=False)
        if config.clusters is not None:
            self.split(config.clusters)

    def _mlp(self, part: str) -> Callable[..., MLP]:
        """What makes the network of a part, a key of `PARTS`."""
        experts = self.config.experts
        return MLP if experts is None or part not in experts.parts else partial(ExpertMLP, experts=experts)

    def context(
        self,
        task_emb: Tensor,
        compute: Compute = PLAIN,
        q: Sequence[int] | None = None,
        target_q: Sequence[int] | None = None,
        cluster: Tensor | None = None,
    ) -> TaskContext:
        """Tell every network its tasks (n, E).

        Args:
            task_emb: (n, E)
            compute: how the networks are to be computed.
            q: the Q members that will be asked; None for all.
            target_q: the target Q members that will be asked; None for all.
            cluster: (n,) int64, that of each task; only a model with clusters reads it.

        Raises:
            ValueError: the model has clusters, and those of the tasks were not given, or it is to be compiled and has
                clusters, experts or history.
        """
        for name in ("experts", "history", "clusters"):
            if compute.compile and getattr(self.config, name) is not None:
                raise ValueError(f"a model with model.{name} cannot be compiled: set runtime.compile to false")
        groups = None
        if self.config.clusters is not None:
            if cluster is None:
                raise ValueError("this model has networks per cluster of tasks: say which cluster each task belongs to")
            groups = Groups(cluster)
        return TaskContext(
            tell(self.encoder, task_emb, compute, groups),
            self.dynamics.condition(task_emb, compute),
            tell(self.reward_head, task_emb, compute, groups),
            tell(self.policy_head, task_emb, compute, groups),
            self.q_heads.condition(task_emb, compute, q, groups),
            self.target_q_heads.condition(task_emb, compute, target_q, groups),
            None if self.termination_head is None else self.termination_head.condition(task_emb, compute),
        )

    def encode(self, obs: Tensor, ctx: TaskContext) -> Tensor:
        """Map observations (..., n, O) to latents (..., n, Z)."""
        return self.encoder(ctx.encoder, obs)

    def remember(self, past: Past | None, ctx: TaskContext) -> Memory | None:
        """Read the real past of n episodes; None for a model without history. No past is one of no steps."""
        if not isinstance(ctx.dynamics, ConditionedHistory):
            return None
        if past is None or not len(past.obs):
            return ctx.dynamics.begin()
        return ctx.dynamics.remember(self.encode(past.obs, ctx), past.action, past.length)

    def state(self, obs: Tensor, ctx: TaskContext, memory: Memory | None = None) -> Tensor:
        """Return what the networks read at observations (n, O): latents (n, Z), or states (n, Z + D)."""
        return self._state(self.encode(obs, ctx), memory)

    def next(self, z: Tensor, a: Tensor, ctx: TaskContext) -> Tensor:
        """Predict the latents (..., n, Z) after actions a (..., n, A) at latents z (..., n, Z), without a past."""
        return self.advance(z, a, ctx)[0]

    def advance(
        self, z: Tensor, a: Tensor, ctx: TaskContext, memory: Memory | None = None
    ) -> tuple[Tensor, Memory | None]:
        """Take one step of a rollout: the latents or states (..., n, .) after actions a (..., n, A), and its memory.

        Args:
            z: (..., n, .) latents or states.
            a: (..., n, A)
            ctx: of n rows.
            memory: from `remember`, or from the step before; None begins without a past.
        """
        if isinstance(ctx.dynamics, Conditioned):
            return ctx.dynamics(z, a), None
        latent, memory = ctx.dynamics.step(self.latent(z), a, memory or ctx.dynamics.begin())
        return self._state(latent, memory), memory

    def observed(self, obs: Tensor, action: Tensor, ctx: TaskContext, memory: Memory | None = None) -> Tensor:
        """Return the latents or states (T, n, .) that T real steps have led to.

        Args:
            obs: (T + 1, n, O)
            action: (T, n, A)
            ctx: of n rows.
            memory: of what came before.
        """
        if not self.shared:
            return self.encode(obs[1:], ctx)
        z, states = self.encode(obs, ctx), []
        for t, step_action in enumerate(action):
            _, memory = self.advance(z[t], step_action, ctx, memory)
            states.append(self._state(z[t + 1], memory))
        return torch.stack(states)

    def latent(self, z: Tensor) -> Tensor:
        """Return the latents (..., Z) within latents or states."""
        return z[..., : self.config.latent_dim] if self.shared else z

    def _state(self, z: Tensor, memory: Memory | None) -> Tensor:
        if not self.shared or memory is None:
            return z
        return torch.cat([z, memory.hidden.to(z.dtype)], dim=-1)

    def reward(self, z: Tensor, a: Tensor, ctx: TaskContext) -> Tensor:
        """Predict the reward of one step as logits (..., n, K); `two_hot.decode` reads them."""
        return self.reward_head(ctx.reward, z, a)

    def policy(self, z: Tensor, ctx: TaskContext, action_mask: Tensor, noise: Tensor | None = None) -> Policy:
        """Evaluate the policy prior.

        Args:
            z: (..., n, Z)
            ctx: of n rows.
            action_mask: (n, A) 1 on the real action dims of each row's task.
            noise: (..., n, A) standard normal draws; None for the mode.
        """
        raw = self.policy_head(ctx.policy, z)
        return squashed_gaussian(raw, action_mask, noise, self.config.log_std_min, self.config.log_std_max)

    def q(
        self, z: Tensor, a: Tensor, ctx: TaskContext, target: bool = False, members: Sequence[int] | None = None
    ) -> Tensor:
        """Evaluate Q members.

        Args:
            z: (..., n, Z)
            a: (..., n, A)
            ctx: of n rows.
            target: use the slowly following copies.
            members: which of those that `ctx` was made for; None for all of them.

        Returns:
            (M', ..., n, K) logits; `two_hot.decode` reads them.
        """
        if target:
            return self.target_q_heads(ctx.target_q, z, a, members)
        return self.q_heads(ctx.q, z, a, members)

    def termination(self, z: Tensor, ctx: TaskContext) -> Tensor:
        """Predict whether the episode has ended for good at latents z (..., n, Z), as logits (...).

        Only for a model with `config.termination`. The prediction looks at the latent that a step leads to.

        Source: TD-MPC2 (arXiv 2310.16828), the option `episodic` of its later release.
        """
        assert self.termination_head is not None
        assert ctx.termination is not None
        return self.termination_head(ctx.termination, z).squeeze(-1)

    def split(self, clusters: config.Clusters) -> dict[nn.Parameter, nn.Parameter]:
        """Put a copy per cluster in the place of the parts that `clusters` names, target Q included.

        Args:
            clusters: parts and number of clusters.

        Returns:
            for each new parameter the one it is a copy of.

        Raises:
            ValueError: the number is yet to be found, or the model has clusters already.
        """
        if self.config.clusters is not None:
            raise ValueError("this model has its networks per cluster already")
        if clusters.num == "auto":
            raise ValueError("a model is made with a number of clusters; `auto` stands for one found in pretraining")
        origins: dict[nn.Parameter, nn.Parameter] = {}
        for part in clusters.parts:
            if part == "q":
                for ensemble in (self.q_heads, self.target_q_heads):
                    for member, head in enumerate(ensemble.members):
                        ensemble[member], found = copies(head, clusters.num)
                        origins |= found
            else:
                made, found = copies(getattr(self, PARTS[part]), clusters.num)
                setattr(self, PARTS[part], made)
                origins |= found
        self.config = dataclasses.replace(self.config, clusters=clusters)
        self._hub_mixin_config = self.config  # what `save_pretrained` writes
        return origins

    def sync_target(self) -> None:
        """Make the target Q heads a fresh copy of the online ones, adapters included.

        Needed after low-rank adapters were put into `q_heads`: the copies then follow the online adapters.
        """
        self.target_q_heads = make_target(self.q_heads)
