"""A model that acts while another one learns."""

from __future__ import annotations

import copy

import pytest
import torch

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline.config import Finetune, parse
from pipeline.train.averaging import Average
from pipeline.train.step import Learner


def a_pair(decay):
    acting = make_model(TINY)
    learned = copy.deepcopy(acting)
    average = Average(acting, learned, decay)
    return acting, Learner(learned, make_table(TINY), LEARNING, average=average)


def learn(learner, num, first=0):
    batch = make_batch(learner.table, TINY, 6, 3)
    for number in range(first, first + num):
        learner.update(batch, "online", torch.Generator().manual_seed(number))


def test_what_acts_is_the_exponential_average_of_what_was_learned():
    acting, learner = a_pair(0.75)
    expected = {name: value.clone() for name, value in acting.named_parameters()}
    for number in range(4):
        learn(learner, 1, number)
        for name, value in learner.model.named_parameters():
            expected[name] = 0.75 * expected[name] + 0.25 * value.detach()
    moved = dict(acting.named_parameters())
    assert moved.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(moved[name].detach(), value)
    learned = dict(learner.model.named_parameters())
    assert any(not torch.equal(moved[name], learned[name]) for name in moved if name.startswith("policy_head."))


def test_learning_is_the_same_with_and_without():
    _, learner = a_pair(0.75)
    alone = Learner(make_model(TINY), make_table(TINY), LEARNING)
    learn(learner, 3)
    learn(alone, 3)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(learner.model.state_dict()[name], value), name


def test_without_memory_what_acts_is_what_was_learned():
    acting, learner = a_pair(0.0)
    learn(learner, 2)
    for name, value in learner.model.named_parameters():
        torch.testing.assert_close(dict(acting.named_parameters())[name], value)


def test_a_resumed_average_goes_on_bit_for_bit():
    acting, learner = a_pair(0.9)
    learn(learner, 2)
    saved = {name: value.clone() for name, value in learner.state_tensors().items()}
    learn(learner, 2, first=2)
    other, resumed = a_pair(0.9)
    resumed.load_state_tensors(saved)
    learn(resumed, 2, first=2)
    for name, value in acting.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name


def test_a_growing_model_has_no_average():
    values = {
        "env_steps": 1, "utd": 1.0, "batch_size": 2, "demo_fraction": 0.5, "imitate": "none", "lr_scale": 1.0,
        "envs_per_task": 1, "warmup_updates": 0, "seeding_episodes": 1, "constraint": "schedule", "evidence_memory": 2,
        "constraint_steps": 1, "constraint_decay": 0, "replay_capacity": 9, "log_every": 1, "save_every": 1,
        "eval_every": 1, "eval_episodes": 1, "average": 0.9,
    }  # fmt: skip
    scaling = {"parts": ["dynamics"], "adapters": 1, "rank": 2, "alpha": 2.0, "target": 0.9, "targets": {},
               "slack": 0.1, "first_stage_updates": 1, "stage_updates": 1}  # fmt: skip
    assert parse(Finetune, values, "here").average == 0.9
    with pytest.raises(ValueError, match="a model that grows"):
        parse(Finetune, values | {"scaling": scaling}, "here")
