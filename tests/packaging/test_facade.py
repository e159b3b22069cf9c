"""The front door: `eft.Agent`, `eft.make`, `eft.tasks`."""

import numpy as np
import pytest

import eft
from pipeline.agent import Agent
from pipeline.tasks import registry


def test_its_agent_is_the_agent():
    assert eft.Agent is Agent
    assert dir(eft) == ["Agent", "make", "tasks"]
    with pytest.raises(AttributeError, match="'eft' has no attribute 'Agnet': it has Agent, make, tasks"):
        _ = eft.Agnet


def test_tasks_are_those_of_the_catalogue():
    assert eft.tasks() == registry.load_catalogue()
    assert {spec.suite for spec in eft.tasks("box2d").values()} == {"box2d"}
    with pytest.raises(ValueError, match="no suite 'metawrld'.*metaworld"):
        eft.tasks("metawrld")


def test_an_environment_is_as_wide_as_its_task():
    spec = eft.tasks()["pygame-cartpole-balance"]
    for task in ("pygame-cartpole-balance", spec):
        env = eft.make(task)
        obs, _ = env.reset(seed=3)
        assert obs.shape == (spec.obs_dim,)
        assert env.action_space.shape == (spec.action_dim,)
        assert env.render_mode is None
        env.close()
    with pytest.raises(ValueError, match="`pygame-cartpole-balanc` is not known.*pygame-cartpole-balance"):
        eft.make("pygame-cartpole-balanc")


def test_a_task_file_of_ones_own_makes_an_environment(tmp_path):
    (tmp_path / "upright.yaml").write_text(
        "name: upright\nsuite: gymnasium\nenv_id: Pendulum-v1\nembodiment: A pole hangs on a hinge with a motor.\n"
        "instructions: [Swing the pole up., Hold the pole upright.]\nobs_dim: 3\naction_dim: 1\naction_repeat: 1\n"
        "episode_length: 200\nscore: 1+clip(return,-1600,0)/1600\n"
    )
    assert "upright" in eft.tasks(folder=tmp_path)
    one, other = eft.make(str(tmp_path / "upright.yaml")), eft.make("upright", folder=tmp_path)
    assert np.array_equal(one.reset(seed=1)[0], other.reset(seed=1)[0])
