import numpy as np
import pytest

from pipeline.tasks.spec import parse_spec
from pipeline.tasks.task_env import SimulationError, TaskEnv


class Counter:
    """Counts its steps: the observation is (seed, steps), the reward the first action; bounds [0, 10] and [-1, 1]."""

    obs_dim = 2
    low, high = np.array([0.0, -1.0]), np.array([10.0, 1.0])

    def __init__(self, **faults):
        self.faults = faults
        self.actions = []
        self.closed = False

    def reset(self, seed):
        self.seed, self.steps = seed, 0

    def step(self, action):
        self.steps += 1
        self.actions.append(action.copy())
        if self.steps == self.faults.get("crash_at"):
            raise RuntimeError("joint broke")
        reward = float("nan") if self.steps == self.faults.get("nan_reward_at") else float(action[0])
        reward = 1e39 if self.steps == self.faults.get("vast_reward_at") else reward
        terminated = self.steps == self.faults.get("terminates_at")
        truncated = self.steps == self.faults.get("truncates_at")
        return reward, terminated, truncated, self.steps % 2 == 0

    def observe(self, out):
        if self.steps == self.faults.get("wrong_shape_at", -1):
            out[:] = np.zeros(5)
        out[:] = self.seed, self.steps
        if self.steps == self.faults.get("inf_at", -1):
            out[1] = np.inf

    def close(self):
        self.closed = True


def build(repeat=2, length=5, obs_dim=4, action_dim=3, **faults):
    spec = parse_spec(
        {
            "name": "count",
            "suite": "gymnasium",
            "env_id": "x",
            "embodiment": "It counts.",
            "instructions": ["Count."],
            "obs_dim": 2,
            "action_dim": 2,
            "action_repeat": repeat,
            "episode_length": length,
            "score": "return/10",
        },
        "test",
    )
    return TaskEnv(spec, Counter(**faults), obs_dim, action_dim, render=False)


def act(*values):
    return np.array(values, np.float32)


def test_pads_with_zeros_and_repeats_actions_summing_rewards():
    env = build()
    obs, info = env.reset(seed=7)
    assert obs.dtype == np.float32
    assert obs.tolist() == [7, 0, 0, 0]
    assert info == {"success": False}
    obs, reward, terminated, truncated, info = env.step(act(0, 0, 1))
    assert obs.tolist() == [7, 2, 0, 0]
    assert (reward, terminated, truncated, info) == (10.0, False, False, {"success": True})


def test_rescales_and_clips_actions_to_the_simulator_and_drops_the_masked_ones():
    env = build(repeat=1)
    env.reset(seed=0)
    for action in (act(-1, -1, 0), act(1, 1, 9), act(0.5, 0.25, -9), act(-3, 7, 0)):
        env.step(action)
    assert np.array(env.simulator.actions).tolist() == [[0, -1], [10, 1], [7.5, 0.25], [0, 1]]


def test_time_limit_is_exact_and_a_finished_episode_refuses_steps():
    env = build(length=5)
    for _ in range(2):
        env.reset(seed=0)
        assert [env.step(act(0, 0, 0))[3] for _ in range(5)] == [False] * 4 + [True]
    with pytest.raises(RuntimeError, match=r"count: the episode is over .*reset"):
        env.step(act(0, 0, 0))


def test_a_step_before_reset_is_refused():
    with pytest.raises(RuntimeError, match="never began"):
        build().step(act(0, 0, 0))


@pytest.mark.parametrize(("fault", "flags"), [("terminates_at", (True, False)), ("truncates_at", (False, True))])
def test_the_simulators_own_end_stops_the_repeat(fault, flags):
    env = build(**{fault: 3})
    env.reset(seed=0)
    env.step(act(1, 0, 0))
    obs, reward, *ends, _ = env.step(act(1, 0, 0))
    assert (obs[1], reward, tuple(ends)) == (3, 10.0, flags)
    with pytest.raises(RuntimeError, match="episode is over"):
        env.step(act(1, 0, 0))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("crash_at", "RuntimeError: joint broke"),
        ("nan_reward_at", "the reward is nan"),
        ("vast_reward_at", r"the reward is 1e\+39"),  # as float32, in which it is kept, it would be infinite
        ("inf_at", r"not finite at entries \[1\]"),
        ("wrong_shape_at", "the observation is malformed"),
    ],
)
def test_a_failing_simulator_is_named_with_task_step_seed_and_action(fault, message):
    env = build(**{fault: 4})
    env.reset(seed=9)
    env.step(act(0, 0, 0))
    with pytest.raises(SimulationError, match=message) as caught:
        env.step(act(0.5, -0.5, 0))
    assert "task count: step 2 of the episode with seed 9, action [0.5, -0.5]" in str(caught.value)


@pytest.mark.parametrize("action", [act(0, 0), act(0, np.nan, 0), np.zeros((1, 3), np.float32)])
def test_malformed_actions_are_refused(action):
    env = build()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"expected a finite action of shape \(3,\)"):
        env.step(action)


def test_widths_must_be_true_and_fit():
    with pytest.raises(ValueError, match=r"its obs_dim 2 is wider than model\.obs_dim 1"):
        build(obs_dim=1)
    with pytest.raises(ValueError, match=r"its action_dim 2 is wider than model\.action_dim 1"):
        build(action_dim=1)
    wrong = build().task
    simulator = Counter()
    simulator.obs_dim = 3
    with pytest.raises(ValueError, match="its file says obs_dim: 2, the simulator has 3. Write 3"):
        TaskEnv(wrong, simulator, 8, 8, render=False)


def test_unseeded_resets_follow_the_first_seed():
    env = build()
    env.reset(seed=3)
    first = [env.reset()[0][0] for _ in range(3)]
    env.reset(seed=3)
    assert [env.reset()[0][0] for _ in range(3)] == first
    assert len(set(first)) == 3


def test_rendering_must_be_asked_for_when_building():
    env = build()
    with pytest.raises(RuntimeError, match="render_size"):
        env.render()


@pytest.mark.parametrize("seed", [np.int64(3), np.uint32(3), np.array(3)], ids=repr)
def test_a_seed_of_numpy_is_the_same_seed(seed):
    env = build()
    assert env.reset(seed=seed)[0].tolist() == env.reset(seed=3)[0].tolist()
    drawn = [env.reset()[0][0] for _ in range(2)]
    env.reset(seed=seed)
    assert [env.reset()[0][0] for _ in range(2)] == drawn
