"""The categorical autoencoder: its losses, what it learns from demonstrations, and that a checkpoint holds it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pipeline import config
from pipeline.agent import Agent
from pipeline.data.demos import FILE, write_episodes
from pipeline.data.episode import Episode
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.pixels.autoencoder import Autoencoder, Autoencoders, load_autoencoders
from pipeline.pixels.autoencoder_training import as_pixels, collect_frames, make_autoencoder, train
from pipeline.pixels.encoder import FrozenEncoder
from pipeline.pixels.pixel_encoder import PixelEncoder, load_pixel_encoder
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec, parse_spec

SETTINGS = config.Autoencoder(
    groups=4, classes=6, width=4, uniform_mix=0.01, kl_coef=0.1, frames=9, updates=3, batch_size=4, lr=1e-3,
    grad_clip_norm=100.0,
)  # fmt: skip
VISION = config.Vision(observe="both", encoder="autoencoder", size=16, batch_size=8, autoencoder=SETTINGS)
DEVICE = torch.device("cpu")
SHOWER = '''
import gymnasium
import numpy as np

class Shower(gymnasium.Env):
    """Shows a bar as long as its steps and as bright as its start."""
    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.start = 0, self.np_random.random()
        return np.array([self.start, 0.0]), {}

    def step(self, action):
        self.steps += 1
        return np.array([self.start, self.steps]), float(action[0]), False, False, {}

    def render(self):
        image = np.zeros((16, 16, 3), np.uint8)
        image[:, : 2 * self.steps + 1] = int(50 + 200 * self.start)
        return image

gymnasium.register("autoencoder/Shower-v0", entry_point=Shower)
'''


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskSpec:
    (tmp_path / "eft_shower.py").write_text(SHOWER)
    monkeypatch.syspath_prepend(tmp_path)
    values = {
        "name": "shower", "suite": "gymnasium", "env_id": "eft_shower:autoencoder/Shower-v0",
        "embodiment": "It shows.", "instructions": ["Show it."], "obs_dim": 2, "action_dim": 1, "action_repeat": 1,
        "episode_length": 5, "score": "return/10", "env_kwargs": {},
    }  # fmt: skip
    return parse_spec(values, "a test")


@pytest.fixture
def demos(spec: TaskSpec, tmp_path: Path) -> Path:
    """Two demonstrations, played in the real environment."""
    episodes = []
    for seed in range(2):
        env, action = make(spec, 2, 1), np.full((5, 1), 0.5, np.float32)
        obs = np.stack([env.reset(seed=seed)[0], *(env.step(one)[0] for one in action)])
        reward = np.full(5, 0.5, np.float32)
        episodes.append(Episode(spec.name, obs, action, action, reward, False, False, 0.25, 2.5, seed, "test"))
    write_episodes(tmp_path / "demos" / spec.name / FILE, episodes)
    return tmp_path / "demos"


def make_model(settings: config.Autoencoder = SETTINGS, size: int = 16) -> Autoencoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Autoencoder(size, settings)


def images(num: int, size: int = 16) -> torch.Tensor:
    """Bars of several lengths and colours, (n, S, S, 3) uint8."""
    found = torch.zeros(num, size, size, 3, dtype=torch.uint8)
    for i in range(num):
        found[i, :, : (i + 1) * size // (num + 1), i % 3] = 250
    return found


def test_the_divergence_is_that_from_the_uniform_distribution() -> None:
    model = make_model()
    for parameter in model.encoder[-1].parameters():
        torch.nn.init.zeros_(parameter)
    generator, some = torch.Generator().manual_seed(0), as_pixels(images(3), DEVICE)
    losses = model.losses(some, generator)
    assert losses.kl.item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        model.encoder[-1].bias.view(4, 6)[:, 0] = 50  # certain, but for the uniform mix
    sure, rest = 0.99 + 0.01 / 6, 0.01 / 6
    expected = 4 * (math.log(6) + sure * math.log(sure) + 5 * rest * math.log(rest))
    again = model.losses(some, generator)
    assert again.kl.item() == pytest.approx(expected, rel=1e-4)
    assert again.total.item() == pytest.approx(again.reconstruction.item() + 0.1 * expected, rel=1e-5)


def test_codes_are_one_hot_and_gradients_pass_straight_through() -> None:
    model = make_model()
    probabilities = torch.rand(5, 4, 6).softmax(-1).requires_grad_()
    code = model.sample(probabilities, torch.Generator().manual_seed(0))
    assert torch.allclose(code.sum(-1), torch.ones(5, 4))
    assert ((code.detach() - code.detach().round()).abs() < 1e-6).all()
    weight = torch.randn_like(code)
    (code * weight).sum().backward()
    assert torch.equal(probabilities.grad, weight)
    drawn = torch.cat([model.sample(probabilities[:1], torch.Generator().manual_seed(i)) for i in range(400)]).mean(0)
    assert (drawn - probabilities[0]).abs().max() < 0.1


def test_it_learns_its_images_and_is_repeatable(tmp_path: Path) -> None:
    settings = replace(SETTINGS, updates=60, batch_size=8, lr=3e-3)
    frames = {"bars": images(6).numpy()}
    model, curve, found = train(frames, 16, settings, 0, DEVICE)
    assert found is None
    some = as_pixels(images(6), DEVICE)
    before, after = (
        (one.reconstruct(some) - some).abs().mean() for one in (make_model(settings), model.for_task("bars"))
    )
    assert after < 0.6 * before
    assert curve[-1]["reconstruction"] < 0.5 * curve[0]["reconstruction"]
    short = replace(settings, updates=3)
    first, second = (train(frames, 16, short, 0, DEVICE).model.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], value) for name, value in second.items())
    model.save(tmp_path)
    one = torch.zeros(6).long()
    assert torch.equal(load_autoencoders(tmp_path, 16)(some, one), model(some, one))


def crossed(num: int) -> torch.Tensor:
    """Bars across, on a bright ground: nothing like `images`."""
    return 255 - images(num).transpose(1, 2)


def test_tasks_of_a_kind_get_an_autoencoder_of_their_own_copied_from_the_warm_one(tmp_path: Path) -> None:
    clusters = config.Clustering(num=2, max_num=2, warmup_updates=10, batches=2, points=2)
    settings = replace(SETTINGS, updates=60, batch_size=8, lr=3e-3, clusters=clusters)
    kinds = {"a": images(6), "b": crossed(6), "c": images(8), "d": crossed(8)}
    frames = {name: some.numpy() for name, some in kinds.items()}
    model, curve, found = train(frames, 16, settings, 0, DEVICE)
    assert found is not None
    assert found.cluster.tolist() == [0, 1, 0, 1]
    assert model.cluster == {"a": 0, "b": 1, "c": 0, "d": 1}
    assert model.for_task("c") is model.member(0)
    alone = train(frames, 16, replace(settings, clusters=None), 0, DEVICE)
    assert curve[2] == alone.curve[2]  # the warm-up's last: clusters change nothing before they are found
    assert curve[3] != alone.curve[3]

    # An update after the split moves each copy a little from the warm weights, and both apart from each other.
    warm = train(frames, 16, replace(settings, updates=10, clusters=None), 0, DEVICE).model.member(0)
    split = train(frames, 16, replace(settings, updates=11), 0, DEVICE).model
    steps = [(split.member(k).encoder[0].weight - warm.encoder[0].weight).abs().max().item() for k in range(2)]
    assert all(0 < step < 3 * settings.lr for step in steps), steps
    assert not torch.equal(split.member(0).encoder[0].weight, split.member(1).encoder[0].weight)

    some, own = as_pixels(torch.cat([kinds["a"], kinds["b"]]), DEVICE), torch.tensor([0, 1]).repeat_interleave(6)
    mixed = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    vectors = model(some[mixed], own[mixed])
    apart = torch.cat([model.member(0)(some[:6]), model.member(1)(some[6:])])
    torch.testing.assert_close(vectors, apart[mixed])
    model.save(tmp_path)
    torch.testing.assert_close(load_autoencoders(tmp_path, 16)(some[mixed], own[mixed]), vectors)


def test_a_copy_without_images_in_the_batch_is_not_moved() -> None:
    settings = replace(SETTINGS, updates=4, batch_size=1, clusters=config.Clustering(2, 2, 3, 1, 1))
    frames = {"a": images(2).numpy(), "b": crossed(2).numpy()}
    warm = train(frames, 16, replace(settings, updates=3, clusters=None), 0, DEVICE).model.member(0)
    split = train(frames, 16, settings, 0, DEVICE).model
    moved = [not torch.equal(split.member(k).decoder[0].weight, warm.decoder[0].weight) for k in range(2)]
    assert sorted(moved) == [False, True]


def test_a_task_has_its_clusters_encoder_and_a_new_one_that_of_the_nearest(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Autoencoders(16, SETTINGS, {"reach": 0, "push": 1})
    model.save(tmp_path)
    pixel_encoder = PixelEncoder(FrozenEncoder(str(tmp_path), 16, 2), "pictures")
    some = images(3).numpy()
    vectors = pixel_encoder.encode(some, ["push", "reach", "push"])
    for row, number in enumerate((1, 0, 1)):
        expected = model.member(number)(as_pixels(torch.from_numpy(some[row : row + 1]), DEVICE))[0]
        np.testing.assert_allclose(vectors[row], expected.numpy(), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="an encoder per cluster of tasks and knows none for pull"):
        pixel_encoder.encode(some, ["pull"] * 3)
    texts = [["Reach the goal."], ["Push the puck far."], ["Pull the puck far."]]
    embeddings = embed(HashedNgrams(32), ["reach", "push", "pull"], texts, 1)
    assert embeddings.nearest("pull", ("reach", "push")) == "push"
    pixel_encoder.assign_nearest("pull", embeddings.nearest)
    assert np.array_equal(pixel_encoder.encode(some, ["pull"] * 3), pixel_encoder.encode(some, ["push"] * 3))
    pixel_encoder.assign_nearest("reach", lambda task, known: "push")  # its own it keeps
    assert pixel_encoder.cluster("reach") == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 2}, r"vision\.autoencoder\.clusters\.num is 2, but 1 tasks are trained"),
        ({"num": 1, "warmup_updates": 3}, r"warmup_updates is 3 and vision\.autoencoder\.updates 3"),
    ],
)
def test_clusters_that_cannot_be_are_refused_before_anything_is_drawn(
    change: dict, message: str, spec: TaskSpec, demos: Path, tmp_path: Path
) -> None:
    clusters = replace(config.Clustering(num=1, max_num=2, warmup_updates=1, batches=1, points=1), **change)
    vision = replace(VISION, autoencoder=replace(SETTINGS, clusters=clusters))
    with pytest.raises(ValueError, match=message):
        make_autoencoder(tmp_path / "out", demos, [spec], vision, 0, DEVICE)
    assert not (tmp_path / "out").exists()


def test_a_damaged_or_other_autoencoder_is_refused(tmp_path: Path) -> None:
    Autoencoders(16, SETTINGS).save(tmp_path)
    with pytest.raises(ValueError, match=r"of an autoencoder of 16 pixels, vision\.size is 32"):
        load_autoencoders(tmp_path, 32)
    content = json.loads((tmp_path / "config.json").read_text())
    for wrong in ({"a": 0, "b": 2}, {"a": True}, ["a"], None):
        (tmp_path / "config.json").write_text(json.dumps({**content, "cluster": wrong}))
        with pytest.raises(ValueError, match="must number each task's cluster from 0 on"):
            load_autoencoders(tmp_path, 16)
    (tmp_path / "config.json").write_text(json.dumps({**content, "cluster": {"a": 0, "b": 1}}))
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_autoencoders(tmp_path, 16)
    content["autoencoder"]["groups"] = 10**9  # refused before any memory is taken for it
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not hold the weights"):
        load_autoencoders(tmp_path, 16)
    content["autoencoder"]["groups"] = "many"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="`groups` is 'many'"):
        load_autoencoders(tmp_path, 16)


def test_frames_are_those_of_the_demonstrations(spec: TaskSpec, demos: Path) -> None:
    found = collect_frames(spec, demos, 16, most=12)
    assert found.shape == (12, 16, 16, 3)
    assert [int((frame[0, :, 0] > 0).sum()) for frame in found] == 2 * [1, 3, 5, 7, 9, 11]
    assert len(collect_frames(spec, demos, 16, most=5)) == 4  # every third, of two times six


@pytest.mark.parametrize("clusters", [None, config.Clustering(num=1, max_num=2, warmup_updates=1, batches=1, points=1)])
def test_the_trained_autoencoder_is_observed_through_and_travels_with_the_checkpoint(
    clusters: config.Clustering | None, spec: TaskSpec, demos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path("datasets/picture_vectors/autoencoder")
    vision = replace(VISION, autoencoder=replace(SETTINGS, clusters=clusters))
    assert make_autoencoder(folder, demos, [spec], vision, 0, DEVICE)
    assert not make_autoencoder(folder, demos, [spec], vision, 0, DEVICE)
    assert imread(folder / "reconstructions.png").shape[:2] == (32, 16)
    assert list(json.loads((folder / "training.json").read_text())["error"]) == ["shower"]
    assert (folder / "clusters.json").exists() == (clusters is not None)
    pixel_encoder = load_pixel_encoder(vision, "cpu")
    assert pixel_encoder is not None
    assert pixel_encoder.width(2) == 2 + 4 * 6
    vectors = pixel_encoder.encode(images(3).numpy(), [spec.name] * 3)
    np.testing.assert_allclose(vectors.reshape(3, 4, 6).sum(-1), 1, rtol=1e-5)

    sizes = config.Model(
        obs_dim=26, action_dim=1, task_dim=16, latent_dim=8, enc_dim=8, num_enc_layers=1, mlp_dim=8, num_q=2,
        num_bins=5, bin_min=-1.0, bin_max=1.0, simnorm_dim=4, log_std_min=-5.0, log_std_max=1.0, termination=False,
    )  # fmt: skip
    planner = config.Planner(
        horizon=2, iterations=1, num_samples=4, num_policy_samples=2, num_elites=2, min_std=0.1, max_std=1.0,
        temperature=0.5,
    )  # fmt: skip
    embeddings = embed(HashedNgrams(16), [spec.name], [[spec.text(0)]], 1)
    table = TaskTable((spec.name,), torch.from_numpy(embeddings.vectors), torch.ones(1, 1), torch.tensor([0.9]))
    agent = Agent(WorldModel(sizes), [spec], embeddings, table, planner, vision=vision)
    agent.save_pretrained("checkpoint")
    (tmp_path / "elsewhere").mkdir()
    Path("checkpoint").rename("elsewhere/checkpoint")
    Path("datasets").rename("gone")
    again = Agent.from_pretrained("elsewhere/checkpoint")
    picture, obs = images(1)[0].numpy(), np.zeros(2, np.float32)
    again.reset(seed=0)
    agent.reset(seed=0)
    assert np.array_equal(
        again.act(obs, task=spec.name, picture=picture), agent.act(obs, task=spec.name, picture=picture)
    )
    again.act(obs, instruction="Something new.", action_dim=1, picture=picture)  # encoded as for the nearest task
    assert again.pixel_encoder is not None
    assert again.pixel_encoder.encoder.id == pixel_encoder.encoder.id
    again.save_pretrained("saved again")
    assert (Path("saved again") / "autoencoder/model.safetensors").is_file()
    assert "elsewhere" not in (Path("saved again") / "tasks.json").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"autoencoder": None}, "goes with the section vision.autoencoder"),
        ({"encoder": "facebook/dinov2-base"}, "any other encoder with null there"),
        ({"size": 48}, "16, 32, 64, 128"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(VISION, **change)


@pytest.mark.slow
def test_the_published_code_on_images_of_64_pixels(tmp_path: Path) -> None:
    settings = replace(SETTINGS, groups=32, classes=32, width=8, updates=60, batch_size=16)
    some = images(12, 64)
    model, curve, _ = train({"bars": some.numpy()}, 64, settings, 0, DEVICE)
    assert curve[-1]["reconstruction"] < 0.5 * curve[0]["reconstruction"]
    model.save(tmp_path)
    assert FrozenEncoder(str(tmp_path), 64, 8).encode(some.numpy()).shape == (12, 1024)
