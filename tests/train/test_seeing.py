"""What an agent that sees observes: live, in demonstrations, after a resume; and whether it learns from it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.demos import FILE, write_episodes
from pipeline.data.episode import Episode
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.play import play
from pipeline.results import read_curves
from pipeline.tasks import registry
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec, parse_spec
from pipeline.tasks.vector import VectorEnv
from pipeline.train.seeing import SeeingEnvs, check_width, make_envs, see_demonstrations, seen
from pipeline.vision.encoder import PictureEncoder
from pipeline.vision.sight import Sight

ROOT = Path(__file__).parents[2]
SIZE, OBS, ACTION = 28, 24, 1
PAINTER = '''
import gymnasium
import numpy as np

class Painter(gymnasium.Env):
    """Shows a bar as long as its steps and as bright as its start; terminates after `ends` steps."""
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, ends, render_mode=None):
        self.ends, self.render_mode = ends, render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.start = 0, self.np_random.random()
        return np.array([self.start, 0.0]), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.start, self.steps]), float(action[0]), self.steps == self.ends, False, {}

    def render(self):
        picture = np.zeros((28, 28, 3), np.uint8)
        picture[:, : 3 * self.steps + 1] = int(50 + 200 * self.start)
        return picture

gymnasium.register("seeing/Painter-v0", entry_point=Painter)
'''


@pytest.fixture
def painter(tmp_path, monkeypatch) -> TaskSpec:
    (tmp_path / "eft_painter.py").write_text(PAINTER)
    monkeypatch.syspath_prepend(tmp_path)
    return make_painter("painter", 4)


def make_painter(name: str, ends: int) -> TaskSpec:
    values = {
        "name": name, "suite": "gymnasium", "env_id": "eft_painter:seeing/Painter-v0", "embodiment": "It paints.",
        "instructions": [f"Paint {name}."], "obs_dim": 2, "action_dim": 1, "action_repeat": 1, "episode_length": 6,
        "score": "return/10", "env_kwargs": {"ends": ends},
    }  # fmt: skip
    return parse_spec(values, "a test")


@pytest.fixture
def sight(picture_encoder: Path) -> Sight:
    return Sight(PictureEncoder(str(picture_encoder), SIZE, 8), "both")


def picture_of(start: float, steps: int) -> np.ndarray:
    picture = np.zeros((SIZE, SIZE, 3), np.uint8)
    picture[:, : 3 * steps + 1] = int(50 + 200 * start)
    return picture


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pictures_belong_to_their_observations(painter: TaskSpec, num_workers: int):
    specs = [painter, make_painter("other", 2)]
    with VectorEnv(specs, OBS, ACTION, 0, num_workers, picture_size=SIZE) as envs:
        obs = envs.reset()
        for _ in range(5):
            for i in range(2):
                np.testing.assert_array_equal(envs.picture[i], picture_of(float(obs[i, 0]), int(obs[i, 1])))
            step = envs.step(np.zeros((2, 1), np.float32))
            obs = step.obs
            for i in np.flatnonzero(step.terminated):
                last = step.final_obs[i]
                np.testing.assert_array_equal(step.final_picture[i], picture_of(float(last[0]), int(last[1])))
                assert last[1] == specs[i].env_kwargs["ends"]
                assert obs[i, 1] == 0


def test_without_pictures_nothing_is_drawn_or_kept(painter: TaskSpec):
    with make_envs(None, [painter], OBS, ACTION, 0, 0) as envs:
        assert type(envs) is VectorEnv
        envs.reset()
        assert envs.step(np.zeros((1, 1), np.float32)).picture.shape == (1, 0, 0, 3)


def test_observations_hold_the_vectors_of_their_pictures(painter: TaskSpec, sight: Sight):
    specs = [painter, make_painter("other", 2)]
    with SeeingEnvs(sight, specs, OBS, ACTION, 0, 0) as envs:
        obs, actions = envs.reset(), []
        for _ in range(3):
            actions.append(np.zeros((2, 1), np.float32))
            step = envs.step(actions[-1])
            obs = step.obs
            for seen_obs in (*step.obs, *step.final_obs):
                expected = sight.encoder.encode(picture_of(float(seen_obs[0]), int(seen_obs[1]))[None])[0]
                np.testing.assert_allclose(seen_obs[2:18], expected, rtol=1e-4, atol=1e-5)
                assert not seen_obs[18:].any()
            for i in np.flatnonzero(~step.terminated):
                np.testing.assert_array_equal(step.obs[i], step.final_obs[i])
        episodes = envs.episodes.copy()
        assert episodes.tolist() == [0, 1]
    with SeeingEnvs(sight, specs, OBS, ACTION, 0, 0) as again:
        restored = again.restore(episodes, [np.zeros((3, 1), np.float32), np.zeros((1, 1), np.float32)])
    np.testing.assert_array_equal(restored, obs)


def test_a_model_too_narrow_for_the_vectors_is_named(painter: TaskSpec, sight: Sight):
    with pytest.raises(ValueError, match="18 observation dims .2 of state, 16 of the picture's vector., model.obs_dim"):
        check_width(painter, sight, 17)
    check_width(painter, sight, 18)
    check_width(painter, None, 2)


def record(spec: TaskSpec, seed: int) -> Episode:
    env = registry.make(spec, spec.obs_dim, spec.action_dim)
    observations, done = [env.reset(seed=seed)[0]], False
    while not done:
        obs, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
        observations.append(obs)
        done = terminated or truncated
    env.close()
    length = len(observations) - 1
    still, rewards = np.zeros((length, 1), np.float32), np.zeros(length, np.float32)
    return Episode(spec.name, np.stack(observations), still, still, rewards, True, False, 0.0, 0.0, seed, "scripted")


def test_demonstrations_are_seen_once_and_checked(painter: TaskSpec, sight: Sight, tmp_path: Path):
    demos, vectors = tmp_path / "demos", tmp_path / "vectors"
    vectors.mkdir()
    episodes = [record(painter, seed) for seed in (3, 4)]
    write_episodes(demos / painter.name / FILE, episodes)
    with pytest.raises(FileNotFoundError, match="dvc repro embed"):
        seen(vectors, demos, painter, episodes, sight)
    assert see_demonstrations(vectors, demos, painter, episodes, sight)
    assert not see_demonstrations(vectors, demos, painter, episodes, sight)
    for episode, one in zip(episodes, seen(vectors, demos, painter, episodes, sight), strict=True):
        one.check()
        np.testing.assert_array_equal(one.obs[:, :2], episode.obs)
        pictures = np.stack([picture_of(float(start), int(steps)) for start, steps in episode.obs])
        np.testing.assert_allclose(one.obs[:, 2:], sight.encoder.encode(pictures), rtol=1e-4, atol=1e-5)

    write_episodes(demos / painter.name / FILE, episodes[:1])  # other demonstrations than the vectors are of
    with pytest.raises(ValueError, match="dvc repro embed"):
        seen(vectors, demos, painter, episodes[:1], sight)
    episodes[0].obs[1, 0] += 1
    with pytest.raises(ValueError, match="does not come out as recorded"):
        see_demonstrations(vectors, demos, painter, episodes, sight)


def make_agent(spec: TaskSpec, encoder: Path) -> Agent:
    torch.manual_seed(0)
    sizes = config.load(config.Model, ROOT / "tests/tiny.yaml")
    embeddings = embed(HashedNgrams(sizes.task_dim), [spec.name], [[spec.text()]], 1)
    mask = torch.zeros(1, sizes.action_dim)
    mask[0, : spec.action_dim] = 1
    table = TaskTable(embeddings.names, torch.from_numpy(embeddings.vectors), mask, torch.tensor([0.9]))
    planner = config.load(config.Planner, ROOT / "tests/tiny.yaml")
    vision = config.Vision("both", str(encoder), SIZE, 8)
    return Agent(WorldModel(sizes), [spec], embeddings, table, planner, vision=vision)


def test_an_agent_that_sees_acts_on_pictures_and_says_so(painter: TaskSpec, picture_encoder: Path, tmp_path: Path):
    agent = make_agent(painter, picture_encoder)
    for parameter in agent.model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    agent.save_pretrained(tmp_path / "agent")
    agent = Agent.from_pretrained(tmp_path / "agent")
    state, white = np.zeros(2, np.float32), np.full((SIZE, SIZE, 3), 255, np.uint8)
    actions = [agent.act(state, painter.name, plan=False, picture=one) for one in (white, white // 4)]
    assert actions[0] != pytest.approx(actions[1], abs=1e-4)
    agent.reset(2)
    both = agent.act(np.zeros((2, 2)), painter.name, plan=False, picture=np.stack([white, white // 4]))
    np.testing.assert_allclose(both, np.stack(actions), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="give `picture`"):
        agent.act(np.zeros((2, 2)), painter.name)
    with pytest.raises(ValueError, match="1 environments, `obs` of 2"):
        agent.act(np.zeros((2, 2)), painter.name, picture=white)
    (episode,) = play(agent, painter, None, plan=False, seeds=[1])
    assert [frame.shape for frame in episode.frames] == [(SIZE, SIZE, 3)] * 5


def test_another_picture_encoder_is_refused(painter: TaskSpec, picture_encoder: Path, tmp_path: Path):
    folder = shutil.copytree(picture_encoder, tmp_path / "encoder")
    make_agent(painter, folder).save_pretrained(tmp_path / "agent")
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match="trained with the picture encoder"):
        _ = Agent.from_pretrained(tmp_path / "agent").sight


@pytest.mark.slow
def test_the_stages_train_on_pictures_alone(picture_encoder: Path, tmp_path: Path):
    """Meta-World drawn by EGL: demonstrations, vectors, cloning from pictures, a resumable online run, scores."""
    try:
        env = registry.make(registry.get(["mw-reach"])[0], 39, 4, SIZE)
        env.reset(seed=0)
        env.render()
        env.close()
    except RenderingUnavailable as error:
        pytest.skip(str(error))
    params = yaml.safe_load((ROOT / "tests/tiny.yaml").read_text())
    params["tasks"] |= {"train": ["mw-reach"], "held_out": [], "pairs": []}
    params["vision"] = {"observe": "pictures", "encoder": str(picture_encoder), "size": SIZE, "batch_size": 64}
    params["pretrain"] |= {"updates": 120, "log_every": 20, "eval_every": 120, "eval_episodes": 1, "save_every": 120}
    params["finetune"] |= {"env_steps": 120, "log_every": 60, "eval_every": 120, "eval_episodes": 1, "save_every": 120}
    params["evaluate"] |= {"episodes": 2, "open_loop_steps": [], "video_size": 0}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "my_tasks").mkdir()
    for stage in ("demos", "embed", "pretrain", "finetune", "evaluate"):
        done = subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    vectors = tmp_path / "datasets/picture_vectors/mw-reach.safetensors"
    assert vectors.exists()
    losses = read_curves(tmp_path / "checkpoints/pretrain/metrics")["train/bc_loss"].values
    assert losses[-1] < 0.8 * losses[0]
    agent = Agent.from_pretrained(tmp_path / "checkpoints/finetune/model")
    assert agent.vision is not None
    assert agent.vision.observe == "pictures"
