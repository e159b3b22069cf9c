"""Dynamics that read the past: step by step equals all at once, and what must not be seen is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.problem import TINY, make_model, make_table
from pipeline import config
from pipeline.adapters import Adapters
from pipeline.model import products
from pipeline.model.grow import grow
from pipeline.model.open_loop import OpenLoopActor
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.systems.build import build_model
from pipeline.systems.history.actor import HistoryActor
from pipeline.systems.history.past import Past
from pipeline.systems.history.transformer import HistoryDynamics, KeysValues, Memory
from pipeline.systems.history.world_model import HistoryWorldModel
from tests.acting import check_a_part_acts_as_if_alone
from tests.tiny import TINY_PLANNER

CONTEXT, N = 4, 3
HISTORY = config.History(context=CONTEXT, layers=2, heads=2, dim=16, mlp_dim=24, backbone="dynamics")
SIZES = dataclasses.replace(TINY, history=HISTORY)
SHARED = dataclasses.replace(TINY, history=dataclasses.replace(HISTORY, backbone="shared"))


def with_experts(router: str) -> config.Model:
    experts = config.Experts(
        parts=("dynamics",), num=4, top_k=1, hidden=8, shared=True, router=router, temperature=1.0, balance_coef=0.1
    )  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(SIZES, mlp_dim=24, experts=experts)


EVERY_KIND = pytest.mark.parametrize(
    "sizes", [SIZES, SHARED, with_experts("latent"), with_experts("task")], ids=["dynamics", "shared", "latent", "task"]
)


def make(sizes: config.Model) -> HistoryWorldModel:
    model = make_model(sizes)
    assert isinstance(model, HistoryWorldModel)
    return model


def context(model: WorldModel, n: int = N) -> TaskContext:
    return model.context(make_table(model.config, num_tasks=N), torch.arange(n))


class Transformer:
    """The dynamics of a model, given the tasks of a context."""

    def __init__(self, model: WorldModel, ctx: TaskContext):
        assert isinstance(model.dynamics, HistoryDynamics)
        self.dynamics, self.tasks = model.dynamics, ctx.dynamics

    def whole(self, z: Tensor, a: Tensor, length: Tensor) -> tuple[Tensor, tuple[KeysValues, ...]]:
        return self.dynamics.whole(self.tasks, z, a, length)

    def remember(self, z: Tensor, a: Tensor, length: Tensor) -> Memory:
        return self.dynamics.remember(self.tasks, z, a, length)

    def step(self, z: Tensor, a: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        return self.dynamics.step(self.tasks, z, a, memory)


def transformer(model: WorldModel) -> Transformer:
    return Transformer(model, context(model))


def steps(count: int, n: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    z, a = torch.rand(count, n, TINY.latent_dim, generator=draw), torch.rand(count, n, TINY.action_dim, generator=draw)
    return z, a


def close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=0, atol=1e-5)


@EVERY_KIND
@torch.no_grad()
def test_a_rollout_that_keeps_keys_and_values_equals_the_whole_sequence(sizes: config.Model) -> None:
    """Also where steps have left the window, and where a past is shorter than it could be."""
    dynamics, horizon, length = transformer(make(sizes)), CONTEXT + 3, torch.tensor([CONTEXT, 2, 0])
    z, a = steps(CONTEXT + horizon)
    whole, _ = dynamics.whole(z, a, length + horizon)
    memory = dynamics.remember(z[:CONTEXT], a[:CONTEXT], length)
    assert close(memory.hidden[:2], whole[CONTEXT - 1, :2])
    assert not memory.hidden[2].any()  # there was no step to leave anything
    for t in range(CONTEXT, CONTEXT + horizon):
        _, memory = dynamics.step(z[t], a[t], memory)
        assert close(memory.hidden, whole[t]), t


@EVERY_KIND
@torch.no_grad()
def test_samples_share_a_past_and_nothing_else(sizes: config.Model) -> None:
    dynamics, (z, a) = transformer(make(sizes)), steps(CONTEXT)
    begun = dynamics.remember(z, a, torch.full((N,), CONTEXT))
    samples = [torch.stack(parts) for parts in zip(*(steps(3, seed=seed) for seed in range(5)), strict=True)]
    memory, found = begun, []
    for t in range(3):
        out, memory = dynamics.step(samples[0][:, t], samples[1][:, t], memory)
        found.append(out)
    for p in range(5):
        alone = begun
        for t in range(3):
            out, alone = dynamics.step(samples[0][p, t], samples[1][p, t], alone)
            assert close(out, found[t][p])


@EVERY_KIND
@torch.no_grad()
def test_a_later_step_changes_nothing_before_and_no_other_environment(sizes: config.Model) -> None:
    model, length = make(sizes), torch.full((N,), 7)
    dynamics, (z, a) = transformer(model), steps(7)
    before, _ = dynamics.whole(z, a, length)
    other_z, other_a = z.clone(), a.clone()
    other_z[5, 1], other_a[5, 1] = 1 - z[5, 1], 1 - a[5, 1]
    after, _ = dynamics.whole(other_z, other_a, length)
    assert close(after[:5], before[:5])
    assert close(after[5:, [0, 2]], before[5:, [0, 2]])
    assert ((after - before)[5:, 1].abs().amax(-1) > 1e-3).all()
    for row in range(N):  # and an environment alone gets what it got among others
        only = Transformer(model, context(model).take(torch.tensor([row])))
        alone, _ = only.whole(z[:, [row]], a[:, [row]], length[:1])
        assert close(alone[:, 0], before[:, row])


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("sizes", [SIZES, SHARED], ids=["dynamics", "shared"])
def test_a_past_beyond_the_context_and_of_another_episode_does_not_count(sizes: config.Model, plan: bool) -> None:
    counts = plan or sizes is SHARED  # the policy alone reads the past only from a shared backbone

    def act(changed: int | None, ended: int | None = None) -> Tensor:
        """The last of some actions, with one observation of environment 1 changed and an episode of it ended."""
        actor = HistoryActor(make(sizes), make_table(), TINY_PLANNER)
        actor.reset(N, seed=3)
        for step in range(CONTEXT + 3):
            obs = torch.randn(N, TINY.obs_dim, generator=torch.Generator().manual_seed(step))
            if step == changed:
                obs[1] = 5 * obs[1].flip(0)
            if step == ended:
                actor.begin_episodes(torch.tensor([False, True, False]))
            # Always begun anew, so that the plan before is no way in which the past could count.
            actor._is_first[:] = True
            fixed_noise = actor._generator.manual_seed(step)
            assert fixed_noise is actor._generator
            action = actor.act(obs, torch.arange(N), plan, constraint_weight=0.0)
            actor._past = actor._past._replace(action=0.1 * torch.ones_like(actor._past.action))
        return action

    usual, last = act(None), CONTEXT + 2
    assert torch.equal(act(1), usual)
    assert torch.equal(act(0), usual)
    within = act(3)
    assert torch.equal(within[[0, 2]], usual[[0, 2]])
    assert torch.equal(within[1], usual[1]) != counts
    begun = act(None, ended=last)
    assert torch.equal(begun[[0, 2]], usual[[0, 2]])
    assert torch.equal(act(3, ended=last), begun)


def test_what_an_actor_saves_brings_back_its_past() -> None:
    first, second = (HistoryActor(make(SIZES), make_table(), TINY_PLANNER) for _ in range(2))
    seen = [torch.randn(N, TINY.obs_dim, generator=torch.Generator().manual_seed(step)) for step in range(6)]
    first.reset(N, seed=3)
    for obs in seen[:3]:
        first.act(obs, torch.arange(N), plan=True, constraint_weight=0.5)
    second.reset(N, seed=9)
    second.load_state_tensors({name: part.clone() for name, part in first.state_tensors().items()})
    for obs in seen[3:]:
        one, two = (actor.act(obs, torch.arange(N), True, constraint_weight=0.5) for actor in (first, second))
        assert torch.equal(one, two)


@pytest.mark.parametrize("plan", [True, False, torch.tensor([False, True])])
def test_a_part_acts_as_if_alone_and_the_others_keep_their_past(plan: bool | Tensor) -> None:
    actor, alone = (HistoryActor(make(SHARED), make_table(), TINY_PLANNER) for _ in range(2))
    check_a_part_acts_as_if_alone(actor, alone, plan)


@EVERY_KIND
def test_plans_in_bfloat16_are_near(sizes: config.Model) -> None:
    found, model = [], make(sizes)
    for mode in ("torch", "bfloat16"):
        actor = HistoryActor(model, make_table(), TINY_PLANNER, mode)
        actor.reset(N, seed=3)
        found.append(
            torch.stack([actor.act(obs, torch.arange(N), plan=False) for obs in torch.ones(3, N, TINY.obs_dim)])
        )
        with products.use(mode), torch.no_grad():
            dynamics, (z, a) = transformer(model), steps(CONTEXT + 1)
            memory = dynamics.remember(z[:-1], a[:-1], torch.full((N,), CONTEXT))
            found.append(dynamics.step(z[-1], a[-1], memory)[0].float())
        assert actor.act(torch.ones(N, TINY.obs_dim), torch.arange(N), plan=True).isfinite().all()
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        assert 0 < (ours - theirs).abs().max() < 0.2


def test_without_feedback_there_is_no_past() -> None:
    def act(first: float) -> list[Tensor]:
        """Actions of two plans, of which the first was made at another observation."""
        actor = OpenLoopActor(HistoryActor(make(SIZES), make_table(), TINY_PLANNER), steps=2, horizon=CONTEXT + 3)
        actor.reset(N, seed=1)
        seen = [torch.full((N, TINY.obs_dim), float(step)) for step in (first, 1, 2, 3)]
        assert "past_length" not in actor.state_tensors()
        return [actor.act(obs, torch.arange(N)) for obs in seen]

    one, other = act(0), act(5)
    assert all(action.isfinite().all() for action in one)
    assert not torch.equal(one[0], other[0])
    assert torch.equal(one[2], other[2])
    assert torch.equal(one[3], other[3])


@EVERY_KIND
def test_no_past_is_a_past_of_no_steps(sizes: config.Model) -> None:
    model = make(sizes)
    ctx, obs = context(model), torch.zeros(CONTEXT, N, TINY.obs_dim)
    nothing = Past(obs, torch.zeros(CONTEXT, N, TINY.action_dim), torch.zeros(N, dtype=torch.int64))
    action = torch.rand(N, TINY.action_dim)
    (z, with_none), (same, with_nothing) = model.begin(obs[0], ctx, None), model.begin(obs[0], ctx, nothing)
    assert close(z, same)
    expected, _ = model.next(z, action, ctx)
    for carry in (with_none, with_nothing):
        assert close(model.next(z, action, ctx, carry)[0], expected)


def test_past_observations_are_normalised_as_present_ones() -> None:
    model, draw = make(SIZES), torch.Generator().manual_seed(2)
    mean = torch.randn(N, TINY.obs_dim, generator=draw)
    std = 0.5 + torch.rand(N, TINY.obs_dim, generator=draw)
    obs, action = torch.randn(CONTEXT + 1, N, TINY.obs_dim, generator=draw), torch.rand(CONTEXT, N, TINY.action_dim)
    found = []
    for raw in (False, True):
        table = dataclasses.replace(make_table(), obs_mean=mean, obs_std=std) if raw else make_table()
        seen = obs * std + mean if raw else obs
        ctx = model.context(table, torch.arange(N))
        z, carry = model.begin(seen[-1], ctx, Past(seen[:-1], action, torch.full((N,), CONTEXT)))
        found.append(model.next(z, action[0], ctx, carry)[0])
    assert close(*found)


def test_a_shared_backbone_is_read_by_every_head() -> None:
    model = make(SHARED)
    ctx, past = context(model), Past(*torch.rand(2, CONTEXT, N, TINY.obs_dim).unbind(), torch.full((N,), CONTEXT))
    past = past._replace(action=past.action[..., : TINY.action_dim])
    (z, _), action = model.begin(torch.rand(N, TINY.obs_dim), ctx, past), torch.rand(N, TINY.action_dim)
    for out in (model.reward(z, action, ctx), model.q(z, action, ctx), model.policy(z, ctx).mean):
        for layer in range(HISTORY.layers):
            weight = model.get_parameter(f"dynamics.layers.{layer}.qkv.linear.weight")
            (gradient,) = torch.autograd.grad(out.square().sum(), weight, retain_graph=True)
            assert gradient.any()


@EVERY_KIND
def test_adapters_change_nothing_at_first_and_reach_the_transformer(sizes: config.Model, tmp_path: Path) -> None:
    def outputs(model: WorldModel) -> Tensor:
        dynamics, (z, a) = transformer(model), steps(CONTEXT + 1)
        memory = dynamics.remember(z[:-1], a[:-1], torch.full((N,), CONTEXT))
        return dynamics.step(z[-1], a[-1], memory)[0]

    model = make(sizes)
    before, adapters = outputs(model).detach(), Adapters(model)
    adapters.create("task", ["dynamics"], rank=2, alpha=4.0)
    assert close(outputs(model), before)
    outputs(model).square().sum().backward()
    moved = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert all(".lora_" in name for name in moved)
    for part in ("embed.0", "layers.0.qkv", "layers.1.out", "head"):
        assert any(part in name for name in moved), part
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    adapters.save(tmp_path, "task")
    assert load_file(tmp_path / "adapter_model.safetensors")
    with torch.no_grad():
        adapted, again = outputs(model), make(sizes)
        Adapters(again).load(tmp_path, "task")
        assert not close(adapted, before)
        assert close(outputs(again), adapted)
        adapters.merge("task")
        assert close(outputs(model), adapted)


@torch.no_grad()
def test_a_grown_model_predicts_what_it_did() -> None:
    model = make(SHARED)
    grown = grow(model, TINY.obs_dim + 2, TINY.action_dim + 3, build_model)
    assert isinstance(grown, HistoryWorldModel)
    obs, action = torch.rand(CONTEXT, N, TINY.obs_dim), torch.rand(CONTEXT, N, TINY.action_dim)
    found = []
    for wide, more_obs, more_actions in ((model, 0, 0), (grown, 2, 3)):
        ctx = context(wide)
        pad = torch.nn.functional.pad
        past = Past(pad(obs, (0, more_obs)), pad(action, (0, more_actions)), torch.full((N,), CONTEXT))
        z, carry = wide.begin(past.obs[0], ctx, past)
        found.append(wide.next(z, past.action[0], ctx, carry)[0])
    assert close(*found)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match=r"history\.dim 16 is not a multiple of model\.history\.heads 3"):
        dataclasses.replace(HISTORY, heads=3)
    narrow = dataclasses.replace(HISTORY, dim=12)
    with pytest.raises(ValueError, match=r"history\.dim 12 must be a multiple of 8 for experts"):
        dataclasses.replace(with_experts("latent"), history=narrow)
    values = dataclasses.asdict(SIZES)
    values["history"]["contxt"] = values["history"].pop("context")
    with pytest.raises(ValueError, match="`history.contxt` is not a parameter. Did you mean `context`"):
        config.parse(config.Model, values, "params.yaml: model")
