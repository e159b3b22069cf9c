"""Our fast formulas against the plain ones, on random sizes: losses, gradients, whole updates, plans.

In double precision, so that what differs is a formula and not the rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks import plain
from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.model.planner import PlanDraws, plan
from pipeline.model.world_model import WorldModel
from tests.tiny import TINY_PLANNER

sizes = st.builds(
    lambda **values: replace(TINY, **values),
    obs_dim=st.integers(1, 12),
    action_dim=st.integers(1, 6),
    task_dim=st.integers(1, 9),
    latent_dim=st.sampled_from([8, 24]),
    num_enc_layers=st.integers(1, 3),
    num_q=st.integers(2, 4),
    termination=st.booleans(),
)
slices = st.fixed_dictionaries({"batch_size": st.integers(1, 7), "horizon": st.integers(1, 4)})
seeds = st.integers(0, 1000)


@pytest.fixture(autouse=True, scope="module")
def _in_double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    assert ours.dtype == theirs.dtype == torch.float64
    return torch.allclose(ours, theirs, rtol=1e-8, atol=1e-9)


def gradients(model: WorldModel) -> dict[str, torch.Tensor]:
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


@given(sizes, slices, seeds, st.booleans())
@settings(max_examples=25, deadline=None)
def test_losses_and_gradients(sizes: config.Model, shape: dict[str, int], seed: int, pretrain: bool) -> None:
    assume(not sizes.termination or shape["horizon"] > 1)  # see the next test
    check_losses_and_gradients(sizes, shape, seed, pretrain)


def test_losses_of_slices_of_one_step_with_a_termination_head() -> None:
    sizes = replace(
        TINY, obs_dim=1, action_dim=1, task_dim=1, latent_dim=8, num_enc_layers=1, num_q=2, termination=True
    )
    check_losses_and_gradients(sizes, {"batch_size": 1, "horizon": 1}, 0, False)


def check_losses_and_gradients(sizes: config.Model, shape: dict[str, int], seed: int, pretrain: bool) -> None:
    table = make_table(sizes, seed=seed)
    batch = make_batch(table, sizes, **shape, seed=seed)
    draws = UpdateDraws.sample(batch, table.num_phrasings, sizes.num_q, torch.Generator().manual_seed(seed))
    ours, theirs = make_model(sizes, seed), make_model(sizes, seed)
    bc_coef, latents = LEARNING.bc_coef if pretrain else 0.0, []
    total, found = Learner(ours, table, LEARNING).model_loss(batch, draws, bc_coef, latents)
    expected = plain.model_losses(theirs, table, batch, draws, LEARNING, bc_coef)
    total.backward()
    expected.total.backward()
    assert close(latents[0], expected.z)
    for part in ("total", "consistency", "reward", "value"):
        assert close(found[f"{part}_loss"], getattr(expected, part)), part
    assert ("bc_loss" in found) == pretrain
    assert ("termination_loss" in found) == sizes.termination
    ours_grad, theirs_grad = gradients(ours), gradients(theirs)
    assert ours_grad.keys() == theirs_grad.keys()
    for name, gradient in theirs_grad.items():
        assert close(ours_grad[name], gradient), name


@given(sizes, slices, seeds)
@settings(max_examples=15, deadline=None)
def test_policy_loss_and_gradients(sizes: config.Model, shape: dict[str, int], seed: int) -> None:
    table = make_table(sizes, seed=seed)
    batch = make_batch(table, sizes, **shape, seed=seed)
    draws = UpdateDraws.sample(batch, table.num_phrasings, sizes.num_q, torch.Generator().manual_seed(seed))
    draw = torch.Generator().manual_seed(seed)
    z = torch.randn(shape["horizon"] + 1, shape["batch_size"], sizes.latent_dim, generator=draw).softmax(-1)
    ours, theirs = make_model(sizes, seed), make_model(sizes, seed)
    learning, values = replace(LEARNING, prior_coef=0.7, entropy_coef=1e-2), []
    learner = Learner(ours, table, learning)
    learner.value_scale.fill_(2.5)
    total, _ = learner.policy_loss(batch, draws, z, values)
    expected, q = plain.policy_loss(theirs, table, batch, z, draws, learning, torch.tensor([2.5]))
    total.backward()
    expected.backward()
    assert close(total, expected)
    assert close(values[0], q)
    for name, gradient in gradients(theirs).items():
        if name.startswith("policy_head"):
            assert close(gradients(ours)[name], gradient), name


@pytest.mark.parametrize("termination", [False, True])
@pytest.mark.parametrize("mode", ["pretrain", "online"])
def test_five_whole_updates(mode: str, termination: bool) -> None:
    table, sizes = make_table(), replace(TINY, termination=termination)
    ours, theirs = make_model(sizes), make_model(sizes)
    # A gradient norm beyond the bound, so that clipping is part of what is compared.
    learning = replace(LEARNING, grad_clip_norm=0.5)
    learner, reference = Learner(ours, table, learning), plain.PlainLearner(theirs, table, learning)
    generator = torch.Generator().manual_seed(5)
    for step in range(5):
        batch = make_batch(table, seed=step)
        draws = UpdateDraws.sample(batch, table.num_phrasings, TINY.num_q, generator)
        metrics = learner.update(batch, "pretrain" if mode == "pretrain" else "online", draws)
        reference.update(batch, mode == "pretrain", draws)
        assert metrics["grad_norm"] > learning.grad_clip_norm
    expected = theirs.state_dict()
    for name, value in ours.state_dict().items():
        assert close(value, expected[name]), name
    assert close(learner.value_scale, reference.scale)


@given(sizes, seeds, st.integers(1, 4), st.sampled_from([0.0, 0.3, 1.0]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_plans(sizes: config.Model, seed: int, num_envs: int, weight: float, explore: bool) -> None:
    table = make_table(sizes, num_tasks=num_envs, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    model = make_model(sizes, seed)
    obs = torch.randn(num_envs, sizes.obs_dim, generator=generator)
    prev_mean = torch.rand(TINY_PLANNER.horizon, num_envs, sizes.action_dim, generator=generator) * table.action_mask
    is_first = torch.rand(num_envs, generator=generator) < 0.5
    draws = PlanDraws.sample(TINY_PLANNER, num_envs, sizes.action_dim, sizes.num_q, generator)
    given = obs, TINY_PLANNER, prev_mean, is_first
    with torch.no_grad():
        found = plan(model, model.context(table, torch.arange(num_envs)), *given, draws, weight, explore)
    rest = (*given, table.discount, table.action_mask, draws, weight, explore)
    expected = plain.plan(model, table.embeddings[:, 0], *rest)
    # A plan picks the best sequences: where two are as good as each other, the last bit decides. Such an example jumps
    # when the observation is changed by less than it is rounded.
    nudged = plain.plan(model, table.embeddings[:, 0], obs * (1 + 1e-6), *rest[1:])
    assume(all(torch.allclose(getattr(nudged, part), getattr(expected, part), atol=1e-2) for part in ("mean", "std")))
    for part in ("action", "mean", "std"):
        assert close(getattr(found, part), getattr(expected, part)), part


def test_makes_every_tensor_on_the_device_of_its_inputs() -> None:
    """A device without data stands for a GPU: what lies on the processor does not mix with it either."""
    table, draw = make_table(TINY), torch.Generator().manual_seed(0)
    batch = make_batch(table, TINY).to("meta")
    for part in ("embeddings", "action_mask", "discount"):  # not by `to`, which looks at values
        object.__setattr__(table, part, getattr(table, part).to("meta"))
    draws = UpdateDraws.sample(batch, table.num_phrasings, TINY.num_q, draw)
    with torch.no_grad():
        noise = PlanDraws.sample(TINY_PLANNER, 2, TINY.action_dim, TINY.num_q, draw).to("meta")
        mean = torch.zeros(TINY_PLANNER.horizon, 2, TINY.action_dim, device="meta")
        rows = torch.zeros(2, dtype=torch.bool, device="meta")
        told = (batch.obs[0, :2], TINY_PLANNER, mean, rows, table.discount[:2], table.action_mask[:2], noise)
        found = plain.plan(make_model().to("meta"), table.embeddings[:2, 0], *told)
    assert found.action.device.type == "meta"
    learner = plain.PlainLearner(make_model().to("meta"), table, LEARNING)
    losses = plain.model_losses(learner.model, table, batch, draws, LEARNING, LEARNING.bc_coef)
    loss, value = plain.policy_loss(learner.model, table, batch, losses.z, draws, LEARNING, learner.scale)
    assert {losses.total.device.type, loss.device.type, value.device.type} == {"meta"}
