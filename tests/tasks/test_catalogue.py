"""Every task of the catalogue, as its spec and the benchmark's table have it, on the real simulators."""

import csv
from pathlib import Path

import numpy as np
import pytest

from pipeline.tasks import domains, registry

CATALOGUE = registry.load_catalogue()
LISTED = list(csv.DictReader((Path(__file__).parents[1] / "data" / "mmbench_tasks.csv").read_text().splitlines()))
SUITES = {"pygame": "miniarcade"}  # where the table calls a domain otherwise
OBS, ACTION = 128, 16
NUM_STEPS, NUM_AGAIN = 100, 25
# These never terminate.
ENDLESS = {"dmcontrol", "dmcontrol-ext", "metaworld", "maniskill", "mujoco", "robodesk", "ogbench", "miniarcade"}
# A whole episode is played of one task of each kind, and wherever it is short; elsewhere only its end.
FIRST = {(spec.suite, spec.episode_length): name for name, spec in reversed(CATALOGUE.items())}


@pytest.fixture(autouse=True)
def no_display(monkeypatch):
    for variable in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize("domain", sorted({row["domain"] for row in LISTED}))
def test_agrees_with_the_table_of_the_benchmark(domain):
    rows = [row for row in LISTED if row["domain"] == domain]
    suite = SUITES.get(domain, domain)
    ours = {name for name, spec in CATALOGUE.items() if spec.suite == suite and spec.split in ("train", "held_out")}
    assert ours == {row["task"] for row in rows}
    for row in rows:
        spec = CATALOGUE[row["task"]]
        assert spec.split == row["split"], spec.name
        assert spec.action_dim == int(row["action_dim"]), spec.name
        assert spec.episode_length == int(row["episode_length"]), spec.name
        assert spec.discount == (float(row["discount"]) if row["discount"] else None), spec.name
        if domain == "atari":
            low, high = (float(bound) for bound in row["score"].split(" to "))
            assert spec.evaluate(low, False) == pytest.approx(0, abs=1e-12), spec.name
            assert spec.evaluate((low + high) / 2, False) == pytest.approx(0.5), spec.name
            assert spec.evaluate(high, False) == pytest.approx(1), spec.name
        else:
            assert spec.score == row["score"], spec.name


def test_every_listed_task_has_five_texts():
    for row in LISTED:
        if row["task"] in CATALOGUE:
            assert len(CATALOGUE[row["task"]].instructions) >= 5, row["task"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CATALOGUE)
def test_conforms(name):
    spec = CATALOGUE[name]
    if absent := domains.missing(spec.suite):
        pytest.skip(f"{name}: {', '.join(absent)} not installed; {domains.install(spec.suite)}")
    try:
        env = registry.make(spec, OBS, ACTION)
        obs, _ = env.reset(seed=5)
    except domains.AssetsUnavailable as error:
        pytest.skip(f"{name}: {error}")
    except domains.DomainUnavailable as error:
        if "Vulkan" not in str(error):
            raise
        pytest.skip(f"{name}: {error}")
    assert obs.shape == (OBS,) == env.observation_space.shape
    assert env.action_space.shape == (ACTION,)

    actions = np.random.default_rng(0).uniform(-1, 1, (NUM_STEPS, ACTION)).astype(np.float32)
    observations, rewards, ends = play(env, 5, actions)
    assert observations.dtype == np.float32
    assert np.isfinite(observations).all()
    assert np.isfinite(rewards).all()
    assert not observations[:, spec.obs_dim :].any()
    assert len(np.unique(observations, axis=0)) > 1

    starts = np.array([env.reset(seed=seed)[0] for seed in range(4)])
    assert len(np.unique(starts, axis=0)) > 1
    env.step(actions[-1])  # what came before an episode must not matter, nor masked action dims
    masked = actions[:NUM_AGAIN].copy()
    masked[:, spec.action_dim :] *= -1
    again = play(env, 5, masked)
    for first, second in zip((observations, rewards, ends), again, strict=True):
        np.testing.assert_array_equal(first[: len(second)], second)

    if spec.suite in ENDLESS:
        assert not ends[: spec.episode_length - 1].any()
    assert_exact_time_limit(env, name)
    env.close()


def play(env, seed, actions):
    """Return observations (L + 1, O), rewards (L,) and ends (L,) of an episode until it ends or actions run out."""
    observations, rewards, ends = [env.reset(seed=seed)[0]], [], []
    episode_return = 0.0
    for action in actions:
        obs, reward, terminated, truncated, info = env.step(action)
        observations.append(obs)
        rewards.append(reward)
        ends.append(terminated or truncated)
        episode_return += reward
        assert 0 <= env.task.evaluate(episode_return, info["success"]) <= 1
        if terminated or truncated:
            break
    return np.array(observations), np.array(rewards), np.array(ends)


def assert_exact_time_limit(env, name):
    """Play until the limit; a task may terminate before it."""
    spec, still = CATALOGUE[name], np.zeros(ACTION, np.float32)
    env.reset(seed=5)
    whole = spec.episode_length <= NUM_STEPS or FIRST[spec.suite, spec.episode_length] == name
    if not whole:
        env._steps_left = 3
    for left in reversed(range(spec.episode_length if whole else 3)):
        *_, terminated, truncated, _ = env.step(still)
        if terminated:
            assert spec.suite not in ENDLESS
            break
        assert truncated == (left == 0)
    with pytest.raises(RuntimeError):
        env.step(still)
