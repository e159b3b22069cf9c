import dataclasses

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
    assert "reset(seed=) must determine everything" in found["repeatable"]
    assert "Gymnasium's checker" in found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"obs_dim": 4}, "the simulator has 3"),
        ({"env_id": "CartPole-v1"}, "Discrete actions are not supported"),
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
