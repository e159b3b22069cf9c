"""Dynamics that see the past: what is kept equals what is computed whole, and what must not be seen is not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.problem import TINY, make_model, make_table
from pipeline import config
from pipeline.model.actor import Actor
from pipeline.model.adapters import Adapters
from pipeline.model.compute import PLAIN, Compute
from pipeline.model.grow import grow
from pipeline.model.history import ConditionedHistory
from pipeline.model.open_loop import OpenLoopActor
from pipeline.model.world_model import TaskContext, WorldModel
from pipeline.shapes import Past
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


def told(model: WorldModel, n: int = N) -> TaskContext:
    return model.context(make_table(num_tasks=N).embeddings[:n, 0])


@torch.no_grad()
def told_by(actor: Actor) -> TaskContext:
    return actor.model.context(actor.table.embeddings[:, 0], actor.compute)


def transformer(ctx: TaskContext) -> ConditionedHistory:
    assert isinstance(ctx.dynamics, ConditionedHistory)
    return ctx.dynamics


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
    ctx, horizon, length = told(make_model(sizes)), CONTEXT + 3, torch.tensor([CONTEXT, 2, 0])
    z, a = steps(CONTEXT + horizon)
    whole, _ = transformer(ctx).whole(z, a, length + horizon)
    memory = transformer(ctx).remember(z[:CONTEXT], a[:CONTEXT], length)
    assert close(memory.hidden[:2], whole[CONTEXT - 1, :2])
    assert not memory.hidden[2].any()  # there was no step to leave anything
    for t in range(CONTEXT, CONTEXT + horizon):
        _, memory = transformer(ctx).step(z[t], a[t], memory)
        assert close(memory.hidden, whole[t]), t


@EVERY_KIND
@torch.no_grad()
def test_samples_share_a_past_and_nothing_else(sizes: config.Model) -> None:
    ctx, (z, a) = told(make_model(sizes)), steps(CONTEXT)
    begun = transformer(ctx).remember(z, a, torch.full((N,), CONTEXT))
    samples = [torch.stack(parts) for parts in zip(*(steps(3, seed=seed) for seed in range(5)), strict=True)]
    memory, found = begun, []
    for t in range(3):
        out, memory = transformer(ctx).step(samples[0][:, t], samples[1][:, t], memory)
        found.append(out)
    for p in range(5):
        alone = begun
        for t in range(3):
            out, alone = transformer(ctx).step(samples[0][p, t], samples[1][p, t], alone)
            assert close(out, found[t][p])


@EVERY_KIND
@torch.no_grad()
def test_a_later_step_changes_nothing_before_and_no_other_environment(sizes: config.Model) -> None:
    ctx, length = told(make_model(sizes)), torch.full((N,), 7)
    z, a = steps(7)
    before, _ = transformer(ctx).whole(z, a, length)
    other_z, other_a = z.clone(), a.clone()
    other_z[5, 1], other_a[5, 1] = 1 - z[5, 1], 1 - a[5, 1]
    after, _ = transformer(ctx).whole(other_z, other_a, length)
    assert close(after[:5], before[:5])
    assert close(after[5:, [0, 2]], before[5:, [0, 2]])
    assert ((after - before)[5:, 1].abs().amax(-1) > 1e-3).all()
    for row in range(N):  # and an environment alone gets what it got among others
        alone, _ = transformer(ctx.take(torch.tensor([row]))).whole(z[:, [row]], a[:, [row]], length[:1])
        assert close(alone[:, 0], before[:, row])


@pytest.mark.parametrize("plan", [True, False])
@pytest.mark.parametrize("sizes", [SIZES, SHARED], ids=["dynamics", "shared"])
def test_a_past_beyond_the_context_and_of_another_episode_does_not_count(sizes: config.Model, plan: bool) -> None:
    counts = plan or sizes is SHARED  # the policy alone reads the past only from a shared backbone

    def act(changed: int | None, ended: int | None = None) -> Tensor:
        """The last of some actions, with one observation of environment 1 changed and an episode of it ended."""
        actor = Actor(make_model(sizes), make_table(), TINY_PLANNER)
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
    first, second = (Actor(make_model(SIZES), make_table(), TINY_PLANNER) for _ in range(2))
    seen = [torch.randn(N, TINY.obs_dim, generator=torch.Generator().manual_seed(step)) for step in range(6)]
    first.reset(N, seed=3)
    for obs in seen[:3]:
        first.act(obs, torch.arange(N), plan=True, constraint_weight=0.5)
    second.reset(N, seed=9)
    second.load_state_tensors({name: part.clone() for name, part in first.state_tensors().items()})
    for obs in seen[3:]:
        one, two = (actor.act(obs, torch.arange(N), True, constraint_weight=0.5) for actor in (first, second))
        assert torch.equal(one, two)


@EVERY_KIND
def test_plans_in_bfloat16_are_near(sizes: config.Model) -> None:
    found = []
    for compute in (PLAIN, Compute(bfloat16=True)):
        actor = Actor(make_model(sizes), make_table(), TINY_PLANNER, compute)
        actor.reset(N, seed=3)
        found.append(
            torch.stack([actor.act(obs, torch.arange(N), plan=False) for obs in torch.ones(3, N, TINY.obs_dim)])
        )
        ctx, (z, a) = told_by(actor), steps(CONTEXT + 1)
        memory = transformer(ctx).remember(z[:-1], a[:-1], torch.full((N,), CONTEXT))
        found.append(transformer(ctx).step(z[-1], a[-1], memory)[0].float())
        assert actor.act(torch.ones(N, TINY.obs_dim), torch.arange(N), plan=True).isfinite().all()
    for ours, theirs in zip(found[:2], found[2:], strict=True):
        assert 0 < (ours - theirs).abs().max() < 0.2


def test_without_feedback_there_is_no_past() -> None:
    actor = OpenLoopActor(Actor(make_model(SIZES), make_table(), TINY_PLANNER), steps=2, horizon=CONTEXT + 3)
    actor.reset(N, seed=1)
    for step in range(4):
        found = actor.act(torch.full((N, TINY.obs_dim), float(step)), torch.arange(N))
        assert found.isfinite().all()
    assert not actor.state_tensors()["past_length"].any()


@EVERY_KIND
def test_no_past_is_a_past_of_no_steps(sizes: config.Model) -> None:
    model = make_model(sizes)
    ctx, obs = told(model), torch.zeros(CONTEXT, N, TINY.obs_dim)
    nothing = Past(obs, torch.zeros(CONTEXT, N, TINY.action_dim), torch.zeros(N, dtype=torch.int64))
    z, action = model.state(obs[0], ctx, model.remember(None, ctx)), torch.rand(N, TINY.action_dim)
    assert close(model.advance(z, action, ctx, model.remember(nothing, ctx))[0], model.next(z, action, ctx))


def test_a_shared_backbone_is_read_by_every_head() -> None:
    model = make_model(SHARED)
    ctx, past = told(model), Past(*torch.rand(2, CONTEXT, N, TINY.obs_dim).unbind(), torch.full((N,), CONTEXT))
    past = past._replace(action=past.action[..., : TINY.action_dim])
    z, action = model.state(torch.rand(N, TINY.obs_dim), ctx, model.remember(past, ctx)), torch.rand(N, TINY.action_dim)
    mask = torch.ones(N, TINY.action_dim)
    for out in (model.reward(z, action, ctx), model.q(z, action, ctx), model.policy(z, ctx, mask).mean):
        for layer in transformer(ctx).layers:
            (gradient,) = torch.autograd.grad(out.square().sum(), layer.qkv.weight, retain_graph=True)
            assert gradient.any()


@EVERY_KIND
def test_adapters_change_nothing_at_first_and_reach_the_transformer(sizes: config.Model, tmp_path: Path) -> None:
    def outputs(model: WorldModel) -> Tensor:
        ctx, (z, a) = told(model), steps(CONTEXT + 1)
        memory = transformer(ctx).remember(z[:-1], a[:-1], torch.full((N,), CONTEXT))
        return transformer(ctx).step(z[-1], a[-1], memory)[0]

    model = make_model(sizes)
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
        adapted, again = outputs(model), make_model(sizes)
        Adapters(again).load(tmp_path, "task")
        assert not close(adapted, before)
        assert close(outputs(again), adapted)
        adapters.merge("task")
        assert close(outputs(model), adapted)


@torch.no_grad()
def test_a_grown_model_predicts_what_it_did() -> None:
    model = make_model(SHARED)
    grown = grow(model, TINY.obs_dim + 2, TINY.action_dim + 3)
    obs, action = torch.rand(CONTEXT, N, TINY.obs_dim), torch.rand(CONTEXT, N, TINY.action_dim)
    found = []
    for wide, more_obs, more_actions in ((model, 0, 0), (grown, 2, 3)):
        ctx = told(wide)
        pad = torch.nn.functional.pad
        past = Past(pad(obs, (0, more_obs)), pad(action, (0, more_actions)), torch.full((N,), CONTEXT))
        memory = wide.remember(past, ctx)
        found.append(wide.advance(wide.state(past.obs[0], ctx, memory), past.action[0], ctx, memory)[0])
    assert close(*found)


def test_compiling_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.history cannot be compiled: set runtime\.compile to false"):
        make_model(SIZES).context(make_table().embeddings[:, 0], Compute(compile=True))


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
