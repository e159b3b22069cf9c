"""Environments with images: what is observed in them, also after a resume and while filming."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.pixels.envs import PixelEnvs, check_width, env_maker, episode_observer, observed_width
from pipeline.pixels.pixel_encoder import PixelEncoder
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.vector import VectorEnv
from tests.pixels.painter import SIZE, image_of, make_painter

OBS, ACTION = 24, 1


@pytest.mark.parametrize("num_workers", [0, 1])
def test_images_belong_to_their_observations(painter: TaskSpec, num_workers: int):
    specs = [painter, make_painter("other", 2)]
    with VectorEnv(specs, OBS, ACTION, 0, num_workers, image_size=SIZE) as envs:
        obs = envs.reset()
        for _ in range(5):
            for i in range(2):
                np.testing.assert_array_equal(envs.image[i], image_of(float(obs[i, 0]), int(obs[i, 1])))
            step = envs.step(np.zeros((2, 1), np.float32))
            obs = step.obs
            for i in np.flatnonzero(step.terminated):
                last = step.final_obs[i]
                np.testing.assert_array_equal(step.final_image[i], image_of(float(last[0]), int(last[1])))
                assert last[1] == specs[i].env_kwargs["ends"]
                assert obs[i, 1] == 0


def test_without_images_nothing_is_drawn_or_kept(painter: TaskSpec):
    with env_maker(None)([painter], OBS, ACTION, 0, 0) as envs:
        assert type(envs) is VectorEnv
        envs.reset()
        assert envs.step(np.zeros((1, 1), np.float32)).image.shape == (1, 0, 0, 3)


def test_observations_hold_the_vectors_of_their_images(painter: TaskSpec, pixel_encoder: PixelEncoder):
    specs = [painter, make_painter("other", 2)]
    with PixelEnvs(pixel_encoder, specs, OBS, ACTION, 0, 0) as envs:
        obs, actions = envs.reset(), []
        for _ in range(3):
            actions.append(np.zeros((2, 1), np.float32))
            step = envs.step(actions[-1])
            obs = step.obs
            for one in (*step.obs, *step.final_obs):
                expected = pixel_encoder.encoder.encode(image_of(float(one[0]), int(one[1]))[None])[0]
                np.testing.assert_allclose(one[2:18], expected, rtol=1e-4, atol=1e-5)
                assert not one[18:].any()
            for i in np.flatnonzero(~step.terminated):
                np.testing.assert_array_equal(step.obs[i], step.final_obs[i])
        episodes = envs.episodes.copy()
        assert episodes.tolist() == [0, 1]
    with PixelEnvs(pixel_encoder, specs, OBS, ACTION, 0, 0) as again:
        restored = again.restore(episodes, [np.zeros((3, 1), np.float32), np.zeros((1, 1), np.float32)])
    np.testing.assert_array_equal(restored, obs)


def test_a_model_too_narrow_for_the_vectors_is_named(painter: TaskSpec, pixel_encoder: PixelEncoder):
    with pytest.raises(ValueError, match="18 observation dims .2 of state, 16 of the image's vector., model.obs_dim"):
        env_maker(pixel_encoder)([painter], 17, ACTION, 0, 0)
    check_width(painter, pixel_encoder, 18)
    assert observed_width(painter, pixel_encoder) == 18
    check_width(painter, None, 2)
    with pytest.raises(ValueError, match="painter has 2 observation dims, model.obs_dim is 1"):
        env_maker(None)([painter], 1, ACTION, 0, 0)


def test_a_filmed_episode_is_observed_like_any_other(painter: TaskSpec, pixel_encoder: PixelEncoder):
    env, observe = make(painter, OBS, ACTION, SIZE), episode_observer(painter, pixel_encoder)
    obs, _ = env.reset(seed=1)
    batch = observe(env, obs)
    expected = pixel_encoder.encoder.encode(image_of(float(obs[0]), 0)[None])[0]
    np.testing.assert_allclose(batch[0], [*obs[:2], *expected, *np.zeros(OBS - 18)], rtol=1e-4, atol=1e-5)
    assert not obs[2:].any()  # the environment's own observation is left as it was
    np.testing.assert_array_equal(episode_observer(painter, None)(env, obs), obs[None])
    env.close()
