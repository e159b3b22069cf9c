"""Hold our mathematics against the numbers of the original.

    python -m benchmarks.golden FIXTURE.safetensors CHECKPOINT.pt

Prints the largest error of every key of the fixture, relative to the key's largest value, and last the largest of all;
exits with 1 above 1e-5. Policy noise is 0 and the Q members are 0 and 1 everywhere in the fixture.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline import config
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.task_setup import discount
from pipeline.model.math import decode, locate, soft_cross_entropy, td_target, two_hot, update_value_scale
from pipeline.model.planner import PlanDraws, plan, policy_rollouts
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.newt_checkpoint import NewtCheckpoint, load_newt_checkpoint, our_name
from pipeline.shapes import Batch

TOLERANCE = 1e-5
MEMBERS: tuple[int, int] = (0, 1)

_GRAD_KEYS = (
    "_Qs.online._Qs.0.0.weight",
    "_dynamics.0.weight",
    "_encoder.state.0.weight",
    "_reward.0.weight",
)
_AFTER3_KEYS = (
    "_Qs.online._Qs.1.2.weight",
    "_Qs.target._Qs.1.2.weight",
    "_dynamics.2.weight",
    "_encoder.state.0.weight",
    "_pi.2.weight",
    "_reward.2.bias",
)
_INPUT_KEYS = (
    *(f"in.{name}" for name in ("action", "action_mask", "discount", "episode_length", "obs", "reward", "task")),
    *(f"plan.in.{name}" for name in ("gumbel_exponential", "is_first", "noise", "obs", "prev_mean", "task")),
    "in.task_embeddings",
)
# The published file's prior_coef of 10 acts nowhere; the discount's bounds are fixed in the original's code.
_NOT_LISTED = {
    "prior_coef": 1.0,
    "termination_coef": 0.0,
    "normalize_obs": False,
    "online_bc_coef": 0.0,
    "discount_min": 0.95,
    "discount_max": 0.995,
}


def _of_the_original(section: type) -> list[str]:
    """Return the parameters of a section that have no default: the others are options that the original lacks."""
    return [field.name for field in dataclasses.fields(section) if field.default is dataclasses.MISSING]


_LEARNING_KEYS = tuple(name for name in _of_the_original(config.Learning) if name not in _NOT_LISTED)
_PLANNER = _of_the_original(config.Planner)
_PLANNER_KEYS = ("num_iterations", *(name for name in _PLANNER if name != "iterations"))


class Fixture:
    """The original's numbers, and our objects built for the same tiny model.

    Raises:
        ValueError: the fixture lacks its sizes or an input, or holds something we do not compare.
    """

    def __init__(self, path: str | Path, checkpoint: str | Path):
        with safe_open(path, "pt") as file:
            meta = (file.metadata() or {}).get("meta")
            self.keys = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        missing = [key for key in _INPUT_KEYS if key not in self.keys]
        if meta is None or missing:
            raise ValueError(f"{path} lacks {', '.join(missing) or 'its metadata key `meta`'}: it is no golden fixture")
        self.meta = json.loads(meta)
        unsaid = sorted({*_LEARNING_KEYS, *_PLANNER_KEYS} - self.meta.keys())
        if unsaid:
            raise ValueError(f"{path}: its metadata key `meta` lacks {', '.join(unsaid)}: it is no golden fixture")
        self.newt = load_newt_checkpoint(checkpoint)
        self.table = TaskTable(
            tuple(f"task-{i}" for i in range(len(self["in.task_embeddings"]))),
            self["in.task_embeddings"].unsqueeze(1),
            self["in.action_mask"],
            self["in.discount"],
        )
        reward = self["in.reward"].squeeze(-1)
        action = self["in.action"]
        self.batch = Batch(
            self["in.obs"],
            action,
            action,
            reward,
            torch.zeros_like(reward),
            self["in.task"],
            torch.ones_like(reward[0]),
        )
        noise = torch.zeros_like(self["in.obs"][..., :1]).expand(-1, -1, action.shape[-1])
        self.draws = UpdateDraws(torch.zeros_like(self.batch.task), noise[1:], MEMBERS, noise, MEMBERS)
        self.learning = self._learning()

    def __getitem__(self, key: str) -> Tensor:
        return self.keys[key]

    def model(self) -> WorldModel:
        """Return a fresh copy of the model."""
        model = WorldModel(self.newt.model)
        model.load_state_dict(self.newt.state_dict)
        return model

    def _learning(self) -> config.Learning:
        return config.Learning(**_NOT_LISTED, **{name: self.meta[name] for name in _LEARNING_KEYS})

    def planner(self) -> config.Planner:
        """Return the planner's settings."""
        meta = self.meta | {"iterations": self.meta["num_iterations"]}
        return config.Planner(**{name: meta[name] for name in _PLANNER})


def ours(fixture: Fixture) -> Iterator[tuple[str, Tensor]]:
    """Yield every number of the fixture by key, as our code computes it."""
    yield from _inputs(fixture, fixture.newt)
    yield from _single_calls(fixture)
    yield from _losses_and_gradients(fixture, "pretrain", (*_GRAD_KEYS, "_pi.0.weight"))
    yield from _losses_and_gradients(fixture, "online", _GRAD_KEYS)
    yield from _policy(fixture)
    yield from _three_updates(fixture)
    yield from _plan(fixture)


def _inputs(fixture: Fixture, newt: NewtCheckpoint) -> Iterator[tuple[str, Tensor]]:
    """What we derive or read from the checkpoint, against what the original was given."""
    bounds = fixture.learning.discount_min, fixture.learning.discount_max
    yield "in.task_embeddings", newt.task_embeddings
    yield "in.action_mask", newt.action_mask
    yield "in.discount", torch.tensor([discount(n, *bounds) for n in fixture["in.episode_length"].tolist()])


def _single_calls(fixture: Fixture) -> Iterator[tuple[str, Tensor]]:
    model, batch, draws = fixture.model(), fixture.batch, fixture.draws
    with torch.no_grad():
        ctx = model.context(fixture.table, batch.task, draws.phrasing)
        z = model.encode(batch.obs[0], ctx)
        action, reward = batch.action[0], batch.reward[0]
        policy = model.policy(z, ctx, draws.policy_noise[0])
        logits = model.reward(z, action, ctx)
        pair = decode(model.q(z, action, ctx, members=MEMBERS), model.bins)
        next_z = model.encode(batch.obs[1:], ctx)
        next_action = model.policy(next_z, ctx, draws.td_noise).action
        next_value = decode(model.q(next_z, next_action, ctx, target=True, members=MEMBERS), model.bins).amin(0)
        target = td_target(batch.reward, batch.terminated, ctx.discount, next_value)
        yield "out.z", z
        yield "out.next_z", model.next(z, action, ctx)[0]
        yield "out.policy_action", policy.action
        yield "out.policy_log_std", policy.log_std
        yield "out.policy_entropy", policy.entropy.unsqueeze(-1)
        yield "out.policy_scaled_entropy", policy.scaled_entropy.unsqueeze(-1)
        yield "out.reward_logits", logits
        yield "out.reward", decode(logits, model.bins).unsqueeze(-1)
        yield "out.two_hot", two_hot(reward, model.bins)
        yield "out.soft_ce", soft_cross_entropy(logits, locate(reward, model.bins)).unsqueeze(-1)
        yield "out.q_logits", model.q(z, action, ctx)
        yield "out.target_q_logits", model.q(z, action, ctx, target=True)
        yield "out.q_mean01", pair.mean(0).unsqueeze(-1)
        yield "out.q_min01", pair.amin(0).unsqueeze(-1)
        yield "out.td_target", target.unsqueeze(-1)


def _losses_and_gradients(fixture: Fixture, phase: str, grads: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
    learner, latents = Learner(fixture.model(), fixture.table, fixture.learning), []
    bc_coef = fixture.learning.bc_coef if phase == "pretrain" else 0.0
    total, found = learner.model_loss(fixture.batch, fixture.draws, bc_coef, latents)
    total.backward()
    for part in ("consistency", "reward", "value", "total"):
        yield f"{phase}.{part}_loss", found[f"{part}_loss"].reshape(1)
    yield f"{phase}.zs", latents[0]
    if "bc_loss" in found:
        yield f"{phase}.pi_prior_loss", found["bc_loss"].reshape(1)
        yield f"{phase}.bc_loss", found["imitation_error"].reshape(1)
    for name in grads:
        yield f"{phase}.grad.{name}", _gradient(learner.model, name)
    learner = Learner(fixture.model(), fixture.table, fixture.learning)
    metrics = learner.update(fixture.batch, "pretrain" if phase == "pretrain" else "online", fixture.draws)
    yield f"{phase}.grad_norm", metrics["grad_norm"].reshape(1)


def _policy(fixture: Fixture) -> Iterator[tuple[str, Tensor]]:
    learner, values, scale = Learner(fixture.model(), fixture.table, fixture.learning), [], torch.ones(1)
    total, found = learner.policy_loss(fixture.batch, fixture.draws, fixture["online.zs"], values)
    total.backward()
    update_value_scale(scale, values[0], fixture.learning.tau)
    yield "policy.loss", total.detach().reshape(1)
    yield "policy.prior_loss", found["imitation_error"].reshape(1)
    yield "policy.qs0", values[0].unsqueeze(-1)
    yield "policy.grad._pi.0.weight", _gradient(learner.model, "_pi.0.weight")
    yield "policy.scale_after_one_update", scale


def _three_updates(fixture: Fixture) -> Iterator[tuple[str, Tensor]]:
    learner = Learner(fixture.model(), fixture.table, fixture.learning)
    for _ in range(3):
        learner.update(fixture.batch, "online", fixture.draws)
    weights = learner.model.state_dict()
    for name in _AFTER3_KEYS:
        yield f"after3.{name}", weights[our_name(name)]
    yield "after3.scale", learner.value_scale


def _plan(fixture: Fixture) -> Iterator[tuple[str, Tensor]]:
    model, planner, task = fixture.model(), fixture.planner(), fixture["plan.in.task"]
    mask = fixture.table.action_mask[task]
    zeros = torch.zeros(planner.iterations, planner.num_samples, *mask.shape)
    draws = PlanDraws(
        zeros[0, : planner.num_policy_samples].expand(planner.horizon, -1, -1, -1),
        fixture["plan.in.noise"].permute(0, 2, 3, 1, 4),
        zeros,
        [MEMBERS] * planner.iterations,
        fixture["plan.in.gumbel_exponential"].T,
        torch.zeros_like(mask),
    )
    obs = fixture["plan.in.obs"]
    with torch.no_grad():
        ctx = model.context(fixture.table, task)
        discounts = torch.ones(planner.horizon + 1, len(task))
        rollouts = policy_rollouts(model, ctx, model.encode(obs, ctx), discounts, draws.policy_noise)
    prev_mean, is_first = fixture["plan.in.prev_mean"].transpose(0, 1), fixture["plan.in.is_first"].bool()
    found = plan(model, ctx, obs, planner, prev_mean, is_first, draws)
    yield "plan.out.policy_trajectories", torch.stack(rollouts.actions).permute(2, 0, 1, 3)
    yield "plan.out.action", found.action
    yield "plan.out.mean", found.mean.transpose(0, 1)


def _gradient(model: WorldModel, original_name: str) -> Tensor:
    gradient = model.get_parameter(our_name(original_name)).grad
    assert gradient is not None, original_name
    return gradient


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value; infinity for other shapes."""
    if found.shape != expected.shape:
        return float("inf")
    found, expected = found.double(), expected.double()
    difference = float((found - expected).abs().max())
    return difference / max(float(expected.abs().max()), 1e-12) if difference == difference else float("inf")


def compare(fixture: Fixture) -> dict[str, float]:
    """Return the error of every key that the fixture expects.

    Raises:
        ValueError: the fixture lacks a key that we compute, or holds one that we do not.
    """
    computed = dict(ours(fixture))
    missing = sorted(computed.keys() - fixture.keys.keys())
    unknown = sorted(fixture.keys.keys() - computed.keys() - set(_INPUT_KEYS))
    if missing or unknown:
        raise ValueError(f"the golden fixture lacks {missing} and holds {unknown}, which we do not compute")
    return {key: error(value, fixture[key]) for key, value in sorted(computed.items())}


def main(fixture: str, checkpoint: str) -> int:
    """Print the errors; return 0 where all are within the tolerance."""
    try:
        errors = compare(Fixture(fixture, checkpoint))
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    for key, value in errors.items():
        print(f"{key:48} {value:.2e}{'' if value <= TOLERANCE else '  ABOVE ' + str(TOLERANCE)}")
    worst = max(errors.values())
    print(f"{'largest':48} {worst:.2e}")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    sys.exit(main(*sys.argv[1:]))
