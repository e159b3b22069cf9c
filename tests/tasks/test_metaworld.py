"""What of Meta-World is done by us is done as Meta-World does it."""

import numpy as np
import pytest
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv

from pipeline.tasks.metaworld import MetaWorld


@pytest.mark.parametrize("env_id", ["pick-place-v3", "push-v3"])
def test_touching_is_what_metaworld_says(env_id):
    simulator, expert = MetaWorld(env_id, {}), ENV_POLICY_MAP[env_id]()
    try:
        simulator.reset(seed=3)
        geoms = [simulator.env._get_id_main_object(), simulator.env.data.geom("leftpad_geom").id]
        obs, found = np.zeros(simulator.obs_dim), []
        for _ in range(150):
            simulator.observe(obs)
            simulator.step(np.clip(expert.get_action(obs), -1, 1))
            for geom in geoms:
                own = SawyerXYZEnv.touching_object(simulator.env, geom)
                assert simulator.touching(geom) == own
                found.append(bool(own))
            assert simulator.env.touching_main_object == found[-2]
        assert True in found
        assert False in found
    finally:
        simulator.close()


def test_an_episode_is_that_of_metaworld():
    ours, theirs = MetaWorld("pick-place-v3", {}), MetaWorld("pick-place-v3", {})
    del theirs.env.touching_object  # Meta-World's own again
    expert, obs, other = ENV_POLICY_MAP["pick-place-v3"](), np.zeros(ours.obs_dim), np.zeros(ours.obs_dim)
    try:
        ours.reset(seed=5)
        theirs.reset(seed=5)
        ours.observe(obs)
        for _ in range(120):
            action = np.clip(expert.get_action(obs), -1, 1)
            assert ours.step(action) == theirs.step(action)
            ours.observe(obs)
            theirs.observe(other)
            assert (obs == other).all()
    finally:
        ours.close()
        theirs.close()
