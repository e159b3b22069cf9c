"""Proximal policy optimisation of one task on many copies of it: how a teacher is trained.

Source: Schulman et al. 2017, with generalised advantages (Schulman et al. 2016), the learning rate steered by the
divergence of new from old policy (Rudin et al. 2022), bootstrapped values where the time limit cut an episode, and
noise that may last (Hollenstein et al. 2024): each action's by itself is as likely as without.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as checked
from torch import nn

from pipeline.batched.stepped import Copies
from pipeline.demonstrate.teacher import Teacher

Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Std = Annotated[float, Field(gt=0, le=1)]  # an action spans [-1, 1]

_CLONING_UPDATES, _CLONING_BATCH = 3000, 256
_WARM_UP = 15  # updates of the value alone, after cloning: at first its errors would undo what was cloned
_KNOWN = 1e6  # observations that a teacher's normalisation counts for


@checked(frozen=True, config=ConfigDict(extra="forbid", allow_inf_nan=False))
class PPORecipe:
    """How one teacher is trained. The values live in teachers.yaml."""

    steps: Count  # agent steps of all copies together
    copies: Count  # N
    unroll: Count  # T, agent steps of every copy between two updates
    epochs: Count  # times that the data of an update are gone through
    minibatch: Count
    lr: Positive  # at the start; then steered between 1/20 and twice that, and falling to 1/10 of it at the end
    kl: Positive  # divergence of the new from the old policy that an update should make
    clip: Positive  # of the ratio of new to old probability
    discount: Annotated[float, Field(ge=0, lt=1)]  # rewards are scaled by 1 - discount
    gae: Fraction  # lambda
    entropy: float  # weight of the policy's entropy
    std: Std  # of the actions, at the start
    min_std: tuple[Std, Std]  # the least, at the start and, falling linearly, at the end
    hidden: Count  # width of both networks, of two hidden layers each
    coarseness: Count  # physics steps of the real environment that one of training replaces
    shaping: Fraction  # part of the training after which what `TEACHING` adds to the reward is gone; 0: it adds nothing
    evaluate: Count  # agent steps between two evaluations
    patience: Count  # evaluations without a gain of 0.01 after which the training ends
    correlation: Annotated[float, Field(ge=0, lt=1)] = 0.0  # of the noise of an action with that of the one before
    demos: CountOrZero = 0  # planned demonstrations that the policy is cloned from before it begins
    begins_as: str | None = None  # task of the same body whose teacher, of those that come with Eft, it begins as

    def __post_init__(self) -> None:
        if self.copies * self.unroll < 2:
            raise ValueError("`copies` x `unroll` is 1 step: an update compares steps, and needs 2 or more")
        if self.demos and self.begins_as is not None:
            raise ValueError("`demos` and `begins_as` both say what to begin as: remove one of them")


class Rollout(NamedTuple):
    """T steps of N copies."""

    obs: np.ndarray  # (T, N, O), normalised
    action: np.ndarray  # (T, N, a)
    log_prob: np.ndarray  # (T, N)
    advantage: np.ndarray  # (T, N)
    target: np.ndarray  # (T, N) of the value


class Normaliser:
    """Running mean and standard deviation of observations."""

    def __init__(self, width: int):
        self.mean, self.var, self.count = np.zeros(width), np.ones(width), 0.0

    def add(self, obs: np.ndarray) -> None:
        """Count observations (..., O)."""
        rows = obs.reshape(-1, obs.shape[-1]).astype(np.float64)
        number, mean, var = len(rows), rows.mean(0), rows.var(0)
        total, off = self.count + number, mean - self.mean
        spread = self.var * self.count + var * number + np.square(off) * self.count * number / total
        self.mean, self.var, self.count = self.mean + off * number / total, spread / total, total

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, at least 0.01: what hardly ever moves is not blown up."""
        return np.maximum(np.sqrt(self.var), 1e-2)

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        return ((obs - self.mean) / self.std).clip(-10, 10).astype(np.float32)


def network(inputs: int, outputs: int, hidden: int, gain: float) -> nn.Sequential:
    """Two hidden layers; `gain` scales the last layer's first weights."""
    net = nn.Sequential(
        nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, outputs)
    )
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    for layer in linears:
        nn.init.orthogonal_(layer.weight, gain if layer is linears[-1] else 2**0.5)
        nn.init.zeros_(layer.bias)
    return net


def advantages(
    reward: np.ndarray, value: np.ndarray, following: np.ndarray, over: np.ndarray, discount: float, gae: float
) -> np.ndarray:
    """Return generalised advantages, (T, N).

    Args:
        reward: (T, N).
        value: (T, N), of the state before each step.
        following: (T, N), of the state after it; 0 where the episode ended for good.
        over: (T, N) bool, where an episode ended or was cut: what comes after belongs to another one.
        discount: of values.
        gae: lambda.
    """
    result, running = np.zeros(reward.shape), np.zeros(reward.shape[1])
    for t in reversed(range(len(reward))):
        error = reward[t] + discount * following[t] - value[t]
        running = error + discount * gae * running * ~over[t]
        result[t] = running
    return result


def fit(policy: nn.Sequential, obs: np.ndarray, action: np.ndarray, generator: torch.Generator) -> Normaliser:
    """Teach a policy what was demonstrated: obs (n, O), action (n, a); return the normaliser of its observations."""
    normaliser = Normaliser(obs.shape[-1])
    normaliser.add(obs)
    seen, wanted = torch.from_numpy(normaliser(obs)), torch.from_numpy(action.astype(np.float32))
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-3)
    for _ in range(_CLONING_UPDATES):
        rows = torch.randint(len(seen), (_CLONING_BATCH,), generator=generator)
        loss = (policy(seen[rows]) - wanted[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return normaliser


class PPO:
    """Trains the policy of one task.

    Args:
        recipe: how.
        env: N copies of the task.
        seed: of weights, actions and minibatches.
    """

    def __init__(self, recipe: PPORecipe, env: Copies, seed: int):
        self.recipe, self.env = recipe, env
        self.rng, self.generator = np.random.default_rng([seed, 2]), torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        obs_dim, action_dim = env.task.obs_dim, env.task.action_dim
        self.policy = network(obs_dim, action_dim, recipe.hidden, 0.01)
        self.value = network(obs_dim, 1, recipe.hidden, 1.0)
        self.log_std = nn.Parameter(torch.full((action_dim,), float(np.log(recipe.std))))
        self.parameters = [*self.policy.parameters(), *self.value.parameters(), self.log_std]
        self.optimizer = torch.optim.Adam(self.parameters, lr=recipe.lr, eps=1e-5, fused=True)
        self.normaliser = Normaliser(obs_dim)
        self.normaliser.add(env.obs)
        self._noise = np.zeros((env.num, action_dim), np.float32)
        self.steps, self._value_alone = 0, 0  # agent steps; updates that are still to be of the value alone

    def clone(self, obs: np.ndarray, action: np.ndarray) -> None:
        """Begin with a policy that does what was demonstrated: obs (n, O), action (n, a)."""
        self.normaliser = fit(self.policy, obs, action, self.generator)
        self._value_alone = _WARM_UP

    def begin_as(self, teacher: Teacher) -> None:
        """Begin with the policy of a teacher that reads and does as many values, and has as many hidden units.

        Raises:
            ValueError: it has other sizes.
        """
        own = list(self.policy.parameters())
        if [part.shape for part in own] != [part.shape for part in teacher.weights]:
            raise ValueError(
                f"{self.env.task.name} cannot begin as the teacher of {teacher.spec.name}: its layers have the shapes "
                f"{[part.shape for part in teacher.weights]}, expected {[tuple(part.shape) for part in own]}."
            )
        with torch.no_grad():
            for part, given in zip(own, teacher.weights, strict=True):
                part.copy_(torch.from_numpy(given))
        normaliser = self.normaliser
        normaliser.mean, normaliser.var = teacher.mean.astype(np.float64), np.square(teacher.std.astype(np.float64))
        normaliser.count = _KNOWN
        self._value_alone = _WARM_UP

    def update(self) -> dict[str, float]:
        """Collect T steps of every copy and learn from them; return what happened.

        Raises:
            FloatingPointError: the networks are no longer finite.
        """
        rollout, reward = self.collect()
        metrics = self.learn(rollout)
        if not all(bool(parameter.isfinite().all()) for parameter in self.parameters):
            raise FloatingPointError(
                f"{self.env.task.name}: the networks are no longer finite after {self.steps} steps, whose last rewards "
                f"were {reward:g} in the mean. Lower `lr` in its recipe, or scale the rewards down."
            )
        return {"train_reward": reward, "std": float(self.log_std.detach().exp().mean()), **metrics}

    def collect(self) -> tuple[Rollout, float]:
        """Act with every copy; return the rollout and the mean reward of a step."""
        recipe, env = self.recipe, self.env
        shape = recipe.unroll, env.num
        obs = np.empty((recipe.unroll + 1, env.num, env.task.obs_dim), np.float32)
        raw = np.empty_like(obs[:-1])
        action = np.empty((*shape, env.task.action_dim), np.float32)
        reward, log_prob = np.empty(shape), np.empty(shape, np.float32)
        over, cut = np.empty(shape, bool), []  # where an episode ended; and what was seen where it was cut
        std = self.log_std.detach().exp().numpy()
        for t in range(recipe.unroll):
            raw[t], obs[t] = env.obs, self.normaliser(env.obs)
            with torch.no_grad():
                mean = self.policy(torch.from_numpy(obs[t])).numpy()
            fresh = self.rng.standard_normal(mean.shape, np.float32)
            self._noise = recipe.correlation * self._noise + (1 - recipe.correlation**2) ** 0.5 * fresh
            noise = self._noise
            action[t], log_prob[t] = mean + std * noise, (-0.5 * noise**2 - np.log(std)).sum(axis=1)
            step = env.step(action[t].astype(np.float64))
            reward[t], over[t] = step.reward, step.terminated | step.truncated
            cut += [(t, n, self.normaliser(step.final_obs[n])) for n in np.flatnonzero(step.truncated)]
        obs[-1] = self.normaliser(env.obs)
        values = self._values(obs)
        following = np.where(over, 0, values[1:])
        if cut:  # by the time limit: what came after would have been worth something
            following[[t for t, _, _ in cut], [n for _, n, _ in cut]] = self._values([seen for _, _, seen in cut])
        # Rewards are scaled so that values have about the size of one step's reward.
        scaled = reward * (1 - recipe.discount) / env.task.action_repeat
        advantage = advantages(scaled, values[:-1], following, over, recipe.discount, recipe.gae)
        self.normaliser.add(raw)
        self.steps += reward.size
        return Rollout(obs[:-1], action, log_prob, advantage, advantage + values[:-1]), float(reward.mean())

    def learn(self, rollout: Rollout) -> dict[str, float]:
        """Go through a rollout several times; return losses and divergence."""
        recipe = self.recipe
        obs, action, log_prob, advantage, target = (
            torch.from_numpy(part.reshape(-1, *part.shape[2:]).astype(np.float32)) for part in rollout
        )
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        spread = target.std().clamp(min=1e-3)
        divergence, losses = 0.0, []
        for _ in range(recipe.epochs):
            divergences = []
            for rows in torch.randperm(len(obs), generator=self.generator).split(recipe.minibatch):
                mean = self.policy(obs[rows])
                new = (-0.5 * ((action[rows] - mean) / self.log_std.exp()) ** 2 - self.log_std).sum(1)
                ratio = (new - log_prob[rows]).exp()
                clipped = ratio.clamp(1 - recipe.clip, 1 + recipe.clip)
                policy_loss = -torch.minimum(ratio * advantage[rows], clipped * advantage[rows]).mean()
                value_loss = ((self.value(obs[rows])[:, 0] - target[rows]) / spread).square().mean()
                # Means far outside [-1, 1] are all the same action, and hard to come back from.
                outside = (mean.abs() - 1).clamp(min=0).square().mean()
                loss = 0.5 * value_loss
                if not self._value_alone:
                    loss = loss + policy_loss + 0.01 * outside - recipe.entropy * self.log_std.sum()
                self.optimizer.zero_grad()  # of no gradient, Adam leaves a parameter alone
                loss.backward()
                nn.utils.clip_grad_norm_(self.parameters, 1.0)
                self.optimizer.step()
                with torch.no_grad():
                    self.log_std.clamp_(self._least_log_std(), 0.0)
                    divergences.append(float((ratio - 1 - (new - log_prob[rows])).mean()))
                    losses.append(float(value_loss))
            divergence = float(np.mean(divergences))
            if divergence > 4 * recipe.kl:
                break
        if self._value_alone:
            self._value_alone -= 1
        else:
            self._steer(divergence)
        return {"kl": divergence, "value_loss": float(np.mean(losses)), "lr": self.optimizer.param_groups[0]["lr"]}

    def _values(self, obs: Any) -> np.ndarray:
        """Return the values (...) of normalised observations (..., O)."""
        with torch.no_grad():
            return self.value(torch.from_numpy(np.asarray(obs)))[..., 0].double().numpy()

    @property
    def _left(self) -> float:
        """The part of the training that is left."""
        return max(1 - self.steps / self.recipe.steps, 0.0)

    def _least_log_std(self) -> float:
        start, end = self.recipe.min_std
        return float(np.log(end + (start - end) * self._left))

    def _steer(self, divergence: float) -> None:
        """Take smaller steps where the policy changed more than it should, and larger ones where less."""
        highest = 2 * self.recipe.lr * (0.1 + 0.9 * self._left)
        for group in self.optimizer.param_groups:
            lr = group["lr"]
            if divergence > 2 * self.recipe.kl:
                lr /= 1.5
            elif divergence < self.recipe.kl / 2:
                lr *= 1.2
            group["lr"] = min(max(lr, self.recipe.lr / 20), highest)

    def teacher(self) -> Teacher:
        """Return the policy as it is now."""
        weights = [part.detach().numpy().copy() for part in self.policy.parameters()]
        return Teacher(self.env.task, self.normaliser.mean.copy(), self.normaliser.std.copy(), weights)

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return everything that the next update depends on: tensors, and what can be written as JSON."""
        arrays, values = self.env.state()
        tensors = {f"env.{name}": torch.from_numpy(np.ascontiguousarray(part)) for name, part in arrays.items()}
        moments = self.optimizer.state_dict()["state"]
        for number, parameter in enumerate(self.parameters):
            tensors[f"parameter.{number}"] = parameter.detach()
            for name, part in moments.get(number, {}).items():
                tensors[f"adam.{number}.{name}"] = part
        tensors["noise"] = torch.from_numpy(self._noise)
        tensors["generator"] = self.generator.get_state()
        tensors["obs_mean"] = torch.from_numpy(self.normaliser.mean)
        tensors["obs_var"] = torch.from_numpy(self.normaliser.var)
        return tensors, {
            "env": values,
            "rng": self.rng.bit_generator.state,
            "obs_count": self.normaliser.count,
            "lr": self.optimizer.param_groups[0]["lr"],
            "steps": self.steps,
            "value_alone": self._value_alone,
        }

    def load_state(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        """Go back to a state that `state` returned."""
        env = {name.removeprefix("env."): part.numpy() for name, part in tensors.items() if name.startswith("env.")}
        self.env.load_state(env, values["env"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        with torch.no_grad():
            for number, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"parameter.{number}"])
        for name, part in tensors.items():
            if name.startswith("adam."):
                _, number, kind = name.split(".")
                moments.setdefault(int(number), {})[kind] = part
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        for group in self.optimizer.param_groups:
            group["lr"] = values["lr"]
        self._noise = tensors["noise"].numpy()
        self.generator.set_state(tensors["generator"])
        self.rng.bit_generator.state = values["rng"]
        self.normaliser.mean, self.normaliser.var = tensors["obs_mean"].numpy(), tensors["obs_var"].numpy()
        self.normaliser.count, self.steps = values["obs_count"], values["steps"]
        self._value_alone = values["value_alone"]
