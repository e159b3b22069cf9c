"""Experts of Gymnasium's MuJoCo bodies and of Box2D: what they plan on, what they want, and that they are good."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pipeline.batched.states import States
from pipeline.demonstrate.bodies import BODIES, ogbench_ant
from pipeline.demonstrate.box2d import PILOTED, WalkerSimulator, fly
from pipeline.demonstrate.play import expert_method, least_score, play
from pipeline.demonstrate.simulator import PlanningSimulator
from pipeline.tasks.registry import get, load_catalogue, make

MUJOCO = [name for name, spec in load_catalogue().items() if spec.suite == "mujoco"]
WALKERS = [name for name in load_catalogue() if name.startswith("bipedal-walker-")]
LANDERS = [name for name in load_catalogue() if name.startswith("lunarlander-")]


def build(name: str, seed: int = 3):
    (spec,) = get([name])
    env = make(spec, spec.obs_dim, spec.action_dim)
    env.reset(seed=seed)
    return spec, env, env.simulator.env.unwrapped


def test_who_demonstrates() -> None:
    assert {get([name])[0].env_id for name in LANDERS} == set(PILOTED)
    assert {get([name])[0].env_id for name in MUJOCO} == set(BODIES)
    assert {expert_method(get([name])[0]) for name in LANDERS} == {"scripted"}
    assert {expert_method(get([name])[0]) for name in [*MUJOCO, *WALKERS]} == {"planner"}


@pytest.mark.parametrize("name", MUJOCO)
def test_rollouts_of_a_body_are_what_then_happens(name: str) -> None:
    spec, env, body = build(name)
    simulator = PlanningSimulator(body.model, body.data, body.frame_skip * spec.action_repeat, 1)
    actions, before = np.random.default_rng(1).uniform(-1, 1, (3, 4, spec.action_dim)), body.data.qpos.copy()
    states = simulator(actions)
    np.testing.assert_array_equal(body.data.qpos, before)  # looking ahead moves nothing
    wanted = BODIES[spec.env_id](states)
    assert wanted.shape == (3, 4)
    assert np.isfinite(wanted).all()
    for step in range(4):
        env.step(actions[1, step].astype(np.float32))
        np.testing.assert_allclose(states.qpos[1, step], body.data.qpos, atol=1e-4)


@pytest.mark.slow
def test_an_ant_runs_through_a_maze_and_stays_at_its_end() -> None:
    (spec,) = get(["og-ant-bottleneck"])
    assert expert_method(spec) == "path"
    episodes = [play(spec, 1, 2 * number, 0.0) for number in range(3)]
    assert sum(episode.success for episode in episodes) >= 2
    assert all(episode.success == (np.linalg.norm(episode.obs[-1, -2:]) <= 0.5) for episode in episodes)


def test_what_ogbenchs_ant_wants() -> None:
    for name in ("og-ant", "og-antball"):
        spec, env, body = build(name)
        goal, nv = env.simulator.goal, body.model.nv
        qpos, qvel = np.tile(body.data.qpos, (2, 3, 1)), np.zeros((2, 3, nv))
        if name == "og-ant":
            qvel[1, :, :2] = goal.direction
        else:
            qpos[1, :, :2] += 0.5 * (qpos[1, :, -7:-5] - qpos[1, :, :2])
        wanted = ogbench_ant(spec.env_id, goal)(
            States(qpos, qvel, np.zeros((2, 3, 8)), np.zeros(0), np.zeros(0), body.model, np.zeros(0))
        )
        assert wanted.shape == (2, 3)
        assert (wanted[1] > wanted[0]).all(), name
        qpos[..., 3:7] = 0, 1, 0, 0  # on its back
        fallen = ogbench_ant(spec.env_id, goal)(
            States(qpos, qvel, np.zeros((2, 3, 8)), np.zeros(0), np.zeros(0), body.model, np.zeros(0))
        )
        assert (fallen < wanted - 5).all()


def states_of(body, **changes: dict[int, float]) -> States:
    """One state: the body as it starts, with some places (qpos) and speeds (qvel) changed."""
    qpos, qvel = body.init_qpos.copy(), np.zeros(body.model.nv)
    for row, value in changes.get("qpos", {}).items():
        qpos[row] = value
    for row, value in changes.get("qvel", {}).items():
        qvel[row] = value
    return States(qpos, qvel, np.zeros(body.model.nu), np.zeros(0), np.zeros(0), body.model, np.zeros(0))


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("mujoco-ant", {"qvel": {0: 2.0}}, {}),
        ("mujoco-ant", {}, {"qpos": {2: 0.1}}),
        ("mujoco-halfcheetah", {"qvel": {0: 2.0}}, {"qpos": {2: 3.0}, "qvel": {0: 2.0}}),
        ("mujoco-hopper", {"qvel": {0: 2.0}}, {}),
        ("mujoco-hopper", {}, {"qpos": {1: 0.5}, "qvel": {0: 2.0}}),
        ("mujoco-walker", {}, {"qpos": {2: 1.2}, "qvel": {0: 2.0}}),
        ("mujoco-inverted-pendulum", {}, {"qpos": {1: 0.3}}),
        ("mujoco-reacher", {"qpos": {2: 0.21, 3: 0.0}}, {"qpos": {2: -0.1, 3: 0.1}}),
    ],
)
def test_a_body_wants_what_its_task_rewards(name: str, better: dict, worse: dict) -> None:
    spec, _, body = build(name)
    first, second = (float(BODIES[spec.env_id](states_of(body, **one))) for one in (better, worse))
    assert first > second + 0.05


def test_the_reachers_arm_is_as_long_as_the_simulators() -> None:
    spec, env, body = build("mujoco-reacher")
    for _ in range(3):
        _, reward, *_ = env.step(np.zeros(2, np.float32))
    state = States(body.data.qpos, body.data.qvel, np.zeros(2), np.zeros(0), np.zeros(0), body.model, np.zeros(0))
    assert float(BODIES[spec.env_id](state)) == pytest.approx(reward / spec.action_repeat, rel=0.05)


def test_a_walker_is_planned_on_a_second_one() -> None:
    spec, env, own = build("bipedal-walker-hills")
    _, _, twin = build("bipedal-walker-hills")
    simulator = WalkerSimulator(own, twin, spec.action_repeat)
    actions = np.random.default_rng(1).uniform(-1, 1, (3, 6, 4))
    for _ in range(10):
        env.step(np.full(4, 0.3, np.float32))
    before = own.hull.position.x, own.hull.angle
    rewards = simulator(actions)
    assert (own.hull.position.x, own.hull.angle) == before
    np.testing.assert_allclose(simulator(actions), rewards, atol=1e-6)  # nothing is left of the first time
    played = [env.step(action.astype(np.float32))[1] for action in actions[1]]
    np.testing.assert_allclose(rewards[1], played, atol=0.05)
    assert np.ptp(rewards) > 0.3


def test_a_fallen_walker_is_worse_than_any_other() -> None:
    spec, _, own = build("bipedal-walker-flat")
    _, _, twin = build("bipedal-walker-flat")
    simulator = WalkerSimulator(own, twin, spec.action_repeat)
    rewards = simulator(np.stack([np.zeros((60, 4)), np.tile([1.0, -1.0, -1.0, 1.0], (60, 1))]))
    assert rewards.min() == -20
    assert (np.diff((rewards == -20).astype(int), axis=1) >= 0).all()  # who has fallen stays down


def test_an_attempt_of_a_walker_depends_on_seed_task_and_number_alone() -> None:
    spec = replace(get(["bipedal-walker-rugged"])[0], episode_length=6)
    first, again = (play(spec, seed=5, attempt=2, action_noise=0.5) for _ in range(2))
    assert np.array_equal(first.obs, again.obs)
    assert np.abs(first.action).max() > 0


def test_the_pilot_brakes_leans_and_switches_off() -> None:
    falling, rising = (fly(np.array([0, 1.0, 0, speed, 0, 0, 0, 0]), 0.0)[0] for speed in (-1.0, 1.0))
    assert falling == 1
    assert rising == -1
    right_of_the_pad, left = (fly(np.array([x, 1.0, 0, 0, 0, 0, 0, 0]), 0.9)[1] for x in (0.3, -0.3))
    assert right_of_the_pad == -left != 0
    assert fly(np.array([0.1, 0, 0, 0, 0, 0, 1, 1.0]), 0.0).tolist() == [-1, 0]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LANDERS, "mujoco-reacher"])
def test_a_quick_expert_is_good(name: str) -> None:
    spec = get([name])[0]
    scores = [play(spec, 1, attempt, 0.5).score for attempt in range(3)]
    assert np.median(scores) >= least_score(spec), scores
