"""Gradient conflict, dormant units and active parameters on models whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.interference import count_parameters, dormant_units, gradient_conflict, probe
from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.learn.learner import Learner
from pipeline.shapes import Batch


@pytest.fixture
def learner() -> Learner:
    return probe(make_model(), make_table(), LEARNING)


def of_task(row: int, batch: Batch) -> Batch:
    return batch._replace(task=torch.full_like(batch.task, row))


def test_a_probe_moves_nothing(learner: Learner) -> None:
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    batch = make_batch(learner.table)
    gradient_conflict(learner, [of_task(0, batch), of_task(1, batch)])
    dormant_units(learner, [batch])
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())


def test_the_same_task_twice_agrees_and_an_opposite_one_does_not() -> None:
    learner = probe(make_model(), make_table(), replace(LEARNING, consistency_coef=0, reward_coef=0, value_coef=0))
    batch = of_task(0, make_batch(learner.table))
    found = gradient_conflict(learner, [batch, batch, batch])
    assert found.mean_cosine == pytest.approx(1, abs=1e-6)
    assert found.negative_share == 0
    # Imitating a + d and a - d from one state pulls into opposite directions.
    with torch.no_grad():
        learner.model.policy_head.blocks[-1].linear.weight.zero_()
        learner.model.policy_head.blocks[-1].linear.bias.zero_()
    learning = replace(learner.learning, entropy_coef=0.0)
    learner = probe(learner.model, learner.table, learning)
    noiseless = batch._replace(expert_action=torch.full_like(batch.expert_action, 9.0))
    found = gradient_conflict(
        learner, [noiseless, noiseless._replace(expert_action=-noiseless.expert_action), noiseless]
    )
    # The head's output layer, the same state on both sides, alone gets a gradient: the weights behind it are 0.
    assert found.parts.keys() == {"policy_head"}
    assert found.cosines[0, 1] < -0.5
    assert found.cosines[0, 2] == pytest.approx(1, abs=1e-6)
    assert found.negative_share == pytest.approx(2 / 3)


def test_what_one_task_has_for_itself_is_not_in_dispute(learner: Learner) -> None:
    batch = make_batch(learner.table)
    batches = [of_task(row, batch) for row in range(3)]
    whole = gradient_conflict(learner, batches)
    assert set(whole.parts) == {"encoder", "dynamics", "reward_head", "policy_head", "q_heads"}
    assert -1 <= whole.mean_cosine < 1
    assert torch.allclose(whole.cosines, whole.cosines.T)
    with pytest.raises(ValueError, match="two or more are needed, not 1"):
        gradient_conflict(learner, batches[:1])
    with pytest.raises(ValueError, match=r"holds the rows \[0, "):
        gradient_conflict(learner, [batch, batch._replace(task=torch.arange(6) % 3)])


def test_silenced_units_are_found_and_no_others(learner: Learner) -> None:
    batch = make_batch(learner.table, batch_size=32)
    assert dormant_units(learner, [batch]).share == 0
    with torch.no_grad():
        # Without gain and bias a unit gives Mish(0) = 0 on everything.
        for block, count in ((learner.model.dynamics.blocks[0], 5), (learner.model.q_heads[1].blocks[1], 3)):
            assert block.norm is not None
            block.norm.weight[:count] = 0
            block.norm.bias[:count] = 0
    found = dormant_units(learner, [batch, make_batch(learner.table, seed=1)])
    # Two hidden layers of each of dynamics, reward, policy and three Q members, one of the encoder.
    assert found.units == 2 * 6 * TINY.mlp_dim + TINY.enc_dim
    assert found.share == pytest.approx(8 / found.units)
    assert {name: share for name, share in found.layers.items() if share} == {
        "dynamics.0.norm": pytest.approx(5 / 20),
        "q_heads.1.1.norm": pytest.approx(3 / 20),
    }


def test_every_parameter_of_a_dense_model_is_active() -> None:
    model = make_model()
    trained = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("target_"))
    assert count_parameters(TINY) == (trained, trained)
