import dataclasses
import re

import gymnasium
import numpy as np
import pytest

from pipeline.tasks import registry
from pipeline.tasks.check import check_task
from pipeline.tasks.spec import parse_spec

pytestmark = pytest.mark.slow  # simulators, processes or a server run for real

VALUES = {
    "name": "mine",
    "suite": "gymnasium",
    "env_id": "Pendulum-v1",
    "embodiment": "A pole hangs on a motor.",
    "instructions": ["Swing it up.", "Raise it."],
    "obs_dim": 3,
    "action_dim": 1,
    "action_repeat": 1,
    "episode_length": 50,
    "score": "return/1000",
}


class Moody(gymnasium.Env):
    """Its episodes do not follow its seed."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    mood = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Moody.mood += 1
        return self._observe(), {}

    def step(self, action):
        return self._observe(), 0.0, False, False, {}

    def _observe(self):
        return np.full(3, Moody.mood % 7 / 7, np.float32)


gymnasium.register("eft-test/Moody-v0", entry_point=Moody)


class Counter(gymnasium.Env):
    """Ends by itself at a step, or with a probability; from a step on it may draw what its seed does not determine."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends=None, truncates=None, probability=0.0, stray=None):
        self.ends, self.truncates, self.probability, self.stray = ends, truncates, probability, stray
        self.over = True

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.over, self.start = 0, False, self.np_random.normal()
        return self._observe(), {}

    def step(self, action):
        assert not self.over, "stepped past the end"
        self.steps += 1
        terminated = self.steps == self.ends or self.np_random.random() < self.probability
        self.over = terminated or self.steps == self.truncates
        return self._observe(), 0.0, bool(terminated), self.steps == self.truncates, {}

    def _observe(self):
        stray = np.random.normal() if self.stray is not None and self.steps >= self.stray else 0
        return np.array([self.start, self.steps / 100, stray], np.float32)


gymnasium.register("eft-test/Counter-v0", entry_point=Counter)


def counter(**env_kwargs):
    values = {"env_id": "eft-test/Counter-v0", "episode_length": 100, "env_kwargs": env_kwargs}
    return parse_spec({**VALUES, **values}, "test")


def failures(findings):
    return {finding.check: finding.detail for finding in findings if not finding.passed}


@pytest.mark.parametrize("spec", [parse_spec(VALUES, "test"), *registry.get(["cup-spin"])], ids=lambda spec: spec.name)
def test_a_sound_task_passes_everything(spec):
    findings = check_task(spec)
    assert failures(findings) == {}
    assert [finding.check for finding in findings][:2] == ["texts", "build"]
    assert "steps/s" in findings[-1].detail


def test_an_environment_that_ignores_its_seed_is_found():
    found = failures(check_task(parse_spec({**VALUES, "env_id": "eft-test/Moody-v0"}, "test")))
    assert "reset(seed=) must determine the whole episode" in found["repeatable"]
    assert "Gymnasium's checker" in found


@pytest.mark.parametrize("ends", [{"ends": 1}, {"ends": 3}, {"truncates": 2}, {"probability": 0.4}], ids=str)
def test_an_environment_is_never_stepped_past_its_end(ends):
    assert failures(check_task(counter(**ends))) == {}


@pytest.mark.parametrize("step", [0, 60, 100])
def test_whole_episodes_are_compared(step):
    found = failures(check_task(counter(stray=step)))
    assert f"from step {step} on" in found["repeatable"]


def test_episodes_that_are_too_short_to_be_learned_from_are_counted():
    found = [finding for finding in check_task(counter(probability=0.4), horizon=3) if finding.doubtful]
    assert re.search(r"\d of 5 episodes are shorter than planner.horizon = 3", found[0].detail)
    assert not any(finding.doubtful for finding in check_task(counter(), horizon=100))


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ({"ends": 50}, "ends at step 50 of 100, whatever is done, with terminated=True. Is it a time limit?"),
        ({"truncates": 50}, "ends at step 50 of 100, whatever is done: the environment truncates it"),
        ({"ends": 50, "probability": 0.01}, "episodes end, and none later, at step 50 of 100, whatever is done, with"),
        ({"probability": 0.1}, None),
        ({"probability": 0.4}, None),
        ({}, None),
    ],
    ids=str,
)
def test_episodes_that_always_end_at_one_step_are_doubted(ends, message):
    (doubt,) = [finding for finding in check_task(counter(**ends)) if finding.check == "random episodes"]
    assert doubt.passed
    assert doubt.doubtful == (message is not None)
    assert message is None or message in doubt.detail


def test_what_becomes_of_actions_and_observations_is_named():
    values = {"env_id": "CartPole-v1", "obs_dim": 4, "action_dim": 2}
    findings = {one.check: one for one in check_task(parse_spec({**VALUES, **values}, "test"))}
    assert all(one.passed for one in findings.values())
    assert findings["actions"].detail == "Discrete(2): the largest of 2 numbers chooses"
    assert findings["observations"].detail.startswith("Box (4,)")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs_dim": 4}, "the simulator has 3"),
        ({"action_bounds": [-9, 9]}, "go beyond its own actions"),
        ({"env_kwargs": {"gravity": 1}}, "refuses env_kwargs {'gravity': 1}"),
        ({"env_id": "Pendulums-v1"}, "Did you mean `Pendulum-v1`"),
    ],
)
def test_a_task_that_cannot_be_built_says_why(change, message):
    assert message in failures(check_task(parse_spec({**VALUES, **change}, "test")))["build"]


def test_a_task_too_wide_for_the_model_is_found():
    assert "Raise model.obs_dim to at least 3" in failures(check_task(parse_spec(VALUES, "test"), obs_dim=2))["build"]


def test_a_text_of_another_task_is_found():
    walk, run = registry.get(["walker-walk", "walker-run"])
    copied = dataclasses.replace(run, name="mine", instructions=(walk.instructions[0],))
    assert "`walker-walk` and `mine` share the text" in failures(check_task(copied))["texts"]


def test_a_broken_neighbour_is_a_finding_not_an_exception(tmp_path):
    (tmp_path / "other.yaml").write_text("name: other")
    assert (
        "other.yaml: `suite` is missing" in failures(check_task(parse_spec(VALUES, "test"), folder=tmp_path))["texts"]
    )


def test_a_frame_is_saved(tmp_path):
    spec = registry.get(["pendulum-swingup"])[0]
    findings = check_task(spec, frame=tmp_path / "frame.png")
    image = next(finding for finding in findings if finding.check == "image")
    if "did not start" in image.detail:
        pytest.skip(image.detail)
    assert image.passed
    assert (tmp_path / "frame.png").read_bytes()[1:4] == b"PNG"


class Drifting(gymnasium.Env):
    """Observes three things, of which the second is made of the step and the third is as it was."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, of_step):
        self.of_step = of_step

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        self.steps += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self):
        return np.array([self.np_random.normal(), eval(self.of_step)(self.steps), 1], np.float32)


gymnasium.register("eft-test/Drifting-v0", entry_point=Drifting)


@pytest.mark.parametrize(
    ("of_step", "doubt"),
    [
        ("lambda step: step", r"Entries \[1\] of the observation grow to more than 10 times .* a counter"),
        ("lambda step: -0.5 * step", r"Entries \[1\] of the observation grow"),
        ("lambda step: 3e4", r"Entries \[1\] of the observation reach 3e\+04: give them in units"),
        ("lambda step: step / 50", None),  # within one
        ("lambda step: 100 + step", None),
        ("lambda step: 30 if step == 49 else 0", None),  # once
    ],
)
def test_observations_that_grow_all_through_an_episode_are_doubted(of_step, doubt):
    spec = parse_spec(VALUES | {"env_id": "eft-test/Drifting-v0", "env_kwargs": {"of_step": of_step}}, "mine.yaml")
    found = next(one for one in check_task(spec) if one.check == "random episodes")
    assert found.passed
    assert found.doubtful == (doubt is not None)
    if doubt:
        assert re.search(doubt, found.detail), found.detail


def test_ends_are_said_to_need_a_parameter_to_be_planned_for():
    spec = parse_spec(VALUES | {"env_id": "eft-test/Counter-v0", "env_kwargs": {"probability": 0.2}}, "mine.yaml")
    found = next(one for one in check_task(spec) if one.check == "random episodes")
    assert "terminations (plans reckon with ends if `model.termination`" in found.detail
