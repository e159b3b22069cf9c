"""Tasks that pull in like directions are found; their networks part, with Adam's moments; a resumed run is the same."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator, debug_launcher
from safetensors.torch import load_file, save_file

from benchmarks.problem import LEARNING, TINY, make_batch, make_model, make_table
from pipeline import config
from pipeline.data.episode import Episode
from pipeline.learn.evaluator import Evaluator
from pipeline.learn.learner import Learner, UpdateDraws
from pipeline.learn.learner_state import load_state_tensors, state_tensors
from pipeline.learn.offline import learn_offline
from pipeline.learn.replay import ReplayBuffer, from_demos
from pipeline.learn.training_run import TrainingRun
from pipeline.model.actor import Actor
from pipeline.run.ranks import Ranks
from pipeline.systems import build
from pipeline.systems.mow import cluster_extension, clustering
from pipeline.systems.mow.cluster_extension import ClusterExtension
from tests.tiny import TINY_PLANNER

CLUSTERS = config.Clusters(
    parts=("encoder", "reward", "policy", "q"), num=2, max_num=4, warmup_updates=3, batches=2, points=1
)
NUM_TASKS = 4
OPPOSITE = [0, 1, 0, 1]  # whose experts do what of the two opposite things


def make_demos(seed: int = 0) -> ReplayBuffer:
    """Tasks of one body and one text whose experts, and whose rewards, are opposites of each other by turns."""
    draw = np.random.default_rng(seed)
    episodes = []
    for task, way in enumerate(OPPOSITE):
        for _ in range(3):
            obs = draw.normal(size=(13, 3)).astype(np.float32)
            sign = np.float32(1 - 2 * way)
            action = sign * np.full((12, 2), 0.8, np.float32)
            reward = sign * np.full(12, 2.0, np.float32)
            total = float(reward.sum())
            episodes.append((task, Episode("t", obs, action, action, reward, False, True, 1.0, total, 0, "test")))
    return from_demos(episodes, TINY.obs_dim, TINY.action_dim, 3)


def make_learner(
    clusters: config.Clusters = CLUSTERS,
    ranks: Ranks | None = None,
    demos: ReplayBuffer | None = None,
    seed: int = 0,
    learning: config.Learning = LEARNING,
    sizes: config.Model = TINY,
) -> Learner:
    table = make_table(num_tasks=NUM_TASKS)
    alike = replace(
        table, embeddings=table.embeddings[:1].expand(NUM_TASKS, -1, -1).clone(),
        action_mask=torch.tensor([1.0, 1, 0, 0]).expand(NUM_TASKS, -1), discount=torch.full((NUM_TASKS,), 0.95),
        columns=build.task_columns(replace(TINY, clusters=clusters), NUM_TASKS),
    )  # fmt: skip
    model = make_model(sizes)
    extensions = build.offline_extensions(model, alike, learning, clusters, demos or make_demos(), seed)
    return Learner(model, alike, learning, ranks=ranks, extensions=extensions)


def of(learner: Learner) -> ClusterExtension:
    found = learner.extensions[-1]
    assert isinstance(found, ClusterExtension)
    return found


def train(learner: Learner, updates: range) -> None:
    sizes = learner.model.config
    for number in updates:
        batch = make_batch(learner.table, sizes, seed=number)
        learner.update(batch, "pretrain", torch.Generator().manual_seed(number))


def test_opposite_tasks_are_parted() -> None:
    learner = make_learner()
    train(learner, range(3))
    found = of(learner).look(16)
    assert found is not None
    assert found.cluster.tolist() == OPPOSITE
    assert learner.table.columns["cluster"].tolist() == OPPOSITE
    other = np.array(OPPOSITE)[:, None] != OPPOSITE
    assert found.similarity[other].max() < found.similarity[~other].min() - 0.2
    ordered = found.cluster[found.order]
    assert (np.diff(ordered) != 0).sum() == 1  # clusters in one piece


def test_auto_finds_as_many_as_there_are() -> None:
    learner = make_learner(replace(CLUSTERS, num="auto", max_num=3))
    found = of(learner).look(16)
    assert found is not None
    assert (found.num, set(found.silhouette)) == (2, {2, 3})
    assert learner.model.config.clusters == replace(CLUSTERS, num=2, max_num=3)


def test_copies_begin_equal_with_their_moments_and_then_part() -> None:
    learner = make_learner()
    train(learner, range(3))
    before = {name: value.clone() for name, value in state_tensors(learner).items()}
    of(learner).split(torch.tensor(OPPOSITE))
    state = state_tensors(learner)
    for kind in ("model.", "model_adam."):
        for key in [key for key in before if key.startswith(f"{kind}encoder.")]:
            rest = key.removeprefix(f"{kind}encoder.")
            assert all(torch.equal(state[f"{kind}encoder.{number}.{rest}"], before[key]) for number in range(2)), key
    moments = [key for key in before if key.startswith("model_adam.q_heads.") and key.endswith("exp_avg")]
    assert moments
    assert all(before[key].any() for key in moments)
    for key in moments:
        _, _, member, rest = key.split(".", 3)
        assert torch.equal(state[f"model_adam.q_heads.{member}.1.{rest}"], before[key])
    assert torch.equal(state["model_adam.dynamics.0.linear.weight.exp_avg"],
                       before["model_adam.dynamics.0.linear.weight.exp_avg"])  # fmt: skip
    train(learner, range(3, 5))
    for module in (learner.model.encoder, learner.model.policy_head, learner.model.q_heads[0]):
        assert not torch.equal(module[0][0].linear.weight, module[1][0].linear.weight)


def test_a_cluster_that_is_not_in_the_batch_has_gradient_zero() -> None:
    learner = make_learner()
    of(learner).split(torch.tensor(OPPOSITE))
    batch = make_batch(learner.table)
    learner.update(batch._replace(task=torch.zeros_like(batch.task)), "pretrain", torch.Generator().manual_seed(0))
    for part in learner.model.encoder[0].parameters():
        assert part.grad.any()
    for part in learner.model.encoder[1].parameters():
        assert not part.grad.any()


@pytest.mark.parametrize("saved_after", [3, 5])
def test_resuming_before_and_after_the_split_is_bit_equal(saved_after: int, tmp_path: Path) -> None:
    def run(learner: Learner, updates: range) -> None:
        for number in updates:
            learner.extensions.lines("before_update", 8)
            train(learner, range(number, number + 1))

    straight, first, second = (make_learner(seed=1) for _ in range(3))
    run(straight, range(7))
    run(first, range(saved_after))
    save_file({name: value.clone() for name, value in state_tensors(first).items()}, tmp_path / "state")
    load_state_tensors(second, load_file(tmp_path / "state"))
    assert (second.model.config.clusters is None) == (saved_after == 3)
    run(second, range(saved_after, 7))
    expected, found = state_tensors(straight), state_tensors(second)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert second.table.columns["cluster"].tolist() == OPPOSITE


def test_layers_count_alike() -> None:
    gradients = [torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1e3 * torch.tensor([[1.0], [1.0]]), torch.zeros(2, 4)]
    assert clustering.similarity(gradients) == pytest.approx(np.array([[1, 1 / 3], [1 / 3, 1]]))
    found = cluster_extension.layers(make_model(), ("encoder", "q"))
    assert list(found) == ["encoder.0", "encoder.1", *(f"q_heads.{m}.{i}" for m in range(3) for i in range(3))]
    assert len(found["encoder.0"]) == 4  # weight and bias, of the linear map and of the normalisation


def test_the_mean_silhouette_is_the_known_one() -> None:
    points = np.array([0.0, 1.0, 5.0, 6.0, 20.0])
    distance = np.abs(points[:, None] - points)
    # By hand: (1, 5.5), (1, 4.5), (1, 4.5), (1, 5.5) and one that is alone.
    expected = np.mean([1 - 1 / 5.5, 1 - 1 / 4.5, 1 - 1 / 4.5, 1 - 1 / 5.5, 0])
    assert clustering.mean_silhouette(distance, np.array([0, 0, 1, 1, 2])) == pytest.approx(expected)


def test_clusters_are_written_for_the_report(tmp_path: Path) -> None:
    cosines = np.array([[1.0, 0.1, 0.8], [0.1, 1.0, 0.0], [0.8, 0.0, 1.0]])
    found = clustering.group(("a", "b", "c"), cosines, 2, 4)
    found.write(tmp_path)
    content = json.loads((tmp_path / clustering.FILE).read_text())
    assert (content["tasks"], content["cluster"]) == (["a", "b", "c"], [0, 1, 0])
    assert found.describe() == "2 clusters of tasks: a, c; b"


@pytest.mark.parametrize(
    ("change", "num_tasks", "updates", "message"),
    [
        ({"num": 5}, 4, 10, "num is 5, but 4 tasks are trained.*Choose 4 or fewer"),
        ({"num": "auto"}, 2, 10, "needs 3 tasks or more; 2 are trained"),
        ({"warmup_updates": 10}, 4, 10, "warmup_updates is 10 and pretrain.updates 10"),
    ],
)
def test_what_cannot_be_is_refused(change: dict, num_tasks: int, updates: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clustering.check(replace(CLUSTERS, **change), num_tasks, updates)


def learn_as_one_of_two(folder: str) -> None:
    """Run in each of two processes: one meets the tasks of one cluster alone, the other those of the other."""
    accelerator = Accelerator(cpu=True)
    ranks, rank = Ranks(accelerator), accelerator.process_index
    learner = make_learner(ranks=ranks, demos=make_demos(rank))
    train(learner, range(3))
    of(learner).look(8)
    own = torch.tensor(OPPOSITE).eq(rank).nonzero().flatten()
    for number in range(3):
        batch = make_batch(learner.table, seed=number + 10 * rank)
        draws = UpdateDraws.sample(batch, 2, TINY.num_q, torch.Generator().manual_seed(number))
        learner.update(batch._replace(task=own[batch.task % 2]), "pretrain", draws)
    save_file(state_tensors(learner), f"{folder}/{rank}.safetensors")


@pytest.mark.slow
def test_two_processes_find_the_same_clusters_and_stay_equal(tmp_path: Path) -> None:
    debug_launcher(learn_as_one_of_two, (str(tmp_path),), num_processes=2)
    first, second = (load_file(tmp_path / f"{rank}.safetensors") for rank in range(2))
    assert first["clusters.cluster"].tolist() == OPPOSITE
    assert all(torch.equal(second[name], value) for name, value in first.items())


def run_loop(run_dir: Path, points: int, *lengths: int) -> dict[str, torch.Tensor]:
    """Pretrain in a run that is made anew, from what it saved, for each of the lengths."""
    runtime = config.Runtime(
        device="cpu", threads=1, env_workers=0, precision="fp32", accumulate=1, keep_saves=2, stop_seconds=0,
        trackers=(), replay="memory", matmul="torch", plan_products="float32",
    )  # fmt: skip
    demos = make_demos()
    for updates in lengths:
        settings = config.Pretrain(
            updates=updates, batch_size=6, warmup_updates=2, log_every=3, save_every=1000, eval_every=1000,
            eval_episodes=1,
        )  # fmt: skip
        learner = make_learner(replace(CLUSTERS, points=points), demos=demos, seed=1)
        actor = Actor(learner.model, learner.table, TINY_PLANNER)
        evaluator = Evaluator([], 1, TINY.obs_dim, TINY.action_dim, 0, 0)
        specs = [SimpleNamespace(name=name) for name in learner.table.names]
        run = TrainingRun("clusters", run_dir, learner, actor, settings, specs, evaluator, runtime, 1)
        run.evaluate = lambda: True  # there is nothing to play
        with run:
            learn_offline(run, demos)
    return {name: value.clone() for name, value in state_tensors(learner).items()}


@pytest.mark.slow
@pytest.mark.parametrize("points", [1, 3])
def test_a_loop_stopped_before_and_after_the_split_ends_the_same(points: int, tmp_path: Path, capsys) -> None:
    straight = run_loop(tmp_path / "straight", points, 6)
    assert straight["clusters.cluster"].tolist() == OPPOSITE
    assert "clusters: 2 clusters of tasks: task-0, task-2; task-1, task-3" in capsys.readouterr().err
    stopped = run_loop(tmp_path / "stopped", points, 2, 3, 5, 6)  # the warm-up ends after the third update
    assert stopped.keys() == straight.keys()
    assert all(torch.equal(stopped[name], value) for name, value in straight.items())


def test_similarities_are_averaged_over_the_points_of_the_warm_up(monkeypatch) -> None:
    learner, seen = make_learner(replace(CLUSTERS, warmup_updates=5, points=2)), []
    extension = of(learner)
    apart, together = np.full((4, 4), -1.0), np.ones((4, 4))
    monkeypatch.setattr(cluster_extension, "similarity", lambda gradients: apart if len(seen) == 1 else together)
    for number in range(6):
        if extension.due:
            seen.append(number)
            found = extension.look(8)
            assert (found is None) == (len(seen) == 1)
            if found is not None:
                assert not found.similarity.any()  # the mean of 1 and -1
        train(learner, range(number, number + 1))
    assert seen == [3, 5]
    assert not extension.due


def test_scales_and_the_head_of_tasks_are_left_out_of_the_comparison_and_experts_are_not() -> None:
    experts = config.Experts(("dynamics",), 4, 1, 8, True, "latent", 1.0, 0.1)
    sizes = replace(TINY, mlp_dim=24, experts=experts)
    both = replace(LEARNING, weighting="harmony", task_id_coef=0.5)
    found, counts = [], []
    for learning, coef in ((LEARNING, 0.1), (both, 0.1), (LEARNING, 5.0)):
        some = replace(sizes, experts=replace(experts, balance_coef=coef))
        learner = make_learner(replace(CLUSTERS, parts=("encoder",)), learning=learning, sizes=some)
        with torch.no_grad():
            for parameter in (one for extension in learner.extensions for one in extension.named_parameters().values()):
                parameter.normal_(generator=torch.Generator().manual_seed(0))
        draws = torch.Generator().manual_seed(0)
        gradients = cluster_extension.task_gradients(learner, make_demos(), CLUSTERS, 8, draws, quiet=True)
        found.append(torch.cat(gradients, 1))
        counts.append(len(learner.extensions))
    assert counts == [2, 3, 2]
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])


def test_more_points_than_updates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"clusters\.points is 4, more than its warm-up has updates, 3"):
        replace(CLUSTERS, points=4)
