"""An episode that a controller plays, as a demonstration that learning takes."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.data.demos import read_episodes, write_episodes
from pipeline.record import record
from pipeline.tasks.spec import TaskSpec
from pipeline.tasks.task_env import TaskEnv

SPEC = TaskSpec(
    name="count", suite="gymnasium", env_id="tests:tests/None-v0", embodiment="A body.", instructions=("Count.",),
    obs_dim=2, action_dim=1, action_repeat=1, episode_length=3, score="success at last step",
)  # fmt: skip


class Counting:
    """Observes its steps and its last action; the third step succeeds."""

    obs_dim, low, high = 2, np.array([-1.0]), np.array([1.0])

    def reset(self, seed: int) -> None:
        self.steps, self.last = seed, 0.0

    def step(self, action: np.ndarray) -> tuple[float, bool, bool, bool]:
        self.steps, self.last = self.steps + 1, float(action[0])
        return self.last, False, False, self.steps == 10

    def observe(self, out: np.ndarray) -> None:
        out[:] = self.steps, self.last

    def render(self) -> np.ndarray:
        return np.zeros((1, 1, 3), np.uint8)

    def close(self) -> None:
        pass


def test_what_was_seen_done_and_earned_is_noted_and_cut_to_its_range(tmp_path):
    asked = []

    def act(obs: np.ndarray, success: bool) -> list[float]:
        asked.append((obs.tolist(), success))
        return [obs[0] - 7.5]

    episode = record(TaskEnv(SPEC, Counting(), 2, 1, False), act, seed=7, method="rule")  # type: ignore[arg-type]
    assert asked == [([7, 0], False), ([8, -0.5], False), ([9, 0.5], False)]
    assert episode.obs.tolist() == [[7, 0], [8, -0.5], [9, 0.5], [10, 1]]
    assert episode.action.tolist() == episode.expert_action.tolist() == [[-0.5], [0.5], [1.0]]  # 1.5, cut
    assert episode.reward.tolist() == [-0.5, 0.5, 1.0]
    assert (episode.score, episode.success, episode.episode_return, episode.terminated) == (1.0, True, 1.0, False)
    assert (episode.seed, episode.method) == (7, "rule")
    episode.check()
    write_episodes(tmp_path / "episodes.parquet", [episode])
    (back,) = read_episodes(tmp_path / "episodes.parquet", "this test")
    assert np.array_equal(back.obs, episode.obs)


def test_a_padded_environment_is_refused():
    with pytest.raises(ValueError, match=r"shapes \(4,\) and \(1,\), the task's \(2,\) and \(1,\)"):
        record(TaskEnv(SPEC, Counting(), 4, 1, False), lambda obs, success: np.zeros(1), seed=0)  # type: ignore[arg-type]
