"""Teachers: they learn, go on bit for bit, are refused where they do not fit, and one changed recipe trains one."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_bfloat16

from pipeline.batched.stepped import SteppedEnv, open_copies
from pipeline.demonstrate import teach_tasks as teaching
from pipeline.demonstrate.experts import expert_kind, open_expert
from pipeline.demonstrate.planner import load_recipes as planned
from pipeline.demonstrate.play import expert_method, least_score, play
from pipeline.demonstrate.ppo import PPO
from pipeline.demonstrate.shaping import TEACHING
from pipeline.demonstrate.teach import Training, load_recipes, play_teacher, usual_recipe
from pipeline.demonstrate.teach_tasks import Lesson, teach_tasks
from pipeline.demonstrate.teacher import SHIPPED, TEACHERS, Teacher, load_teacher, task_version, teacher_file
from pipeline.run.run_dir import hold_output
from pipeline.tasks.registry import get, load_catalogue, make

ROOT = Path(__file__).parents[2]
SMALL = dataclasses.replace(usual_recipe(), steps=2048, copies=16, unroll=16, minibatch=128, hidden=16, evaluate=512)


def spin():
    return get(["pendulum-spin"])[0]


def random_teacher(spec, hidden=8, **notes) -> Teacher:
    rng = np.random.default_rng(0)
    widths = [spec.obs_dim, hidden, hidden, spec.action_dim]
    weights = [rng.normal(0, 0.5, shape) for a, b in itertools.pairwise(widths) for shape in ((b, a), (b,))]
    return Teacher(spec, np.zeros(spec.obs_dim), np.ones(spec.obs_dim), weights, notes)


@pytest.fixture
def few_episodes(monkeypatch):
    monkeypatch.setattr("pipeline.demonstrate.teach.EPISODES_ON_THE_WAY", 1)
    monkeypatch.setattr("pipeline.demonstrate.teach.EPISODES", 2)


@pytest.mark.slow
def test_a_teacher_learns_its_task(tmp_path):
    recipe = dataclasses.replace(usual_recipe(), steps=150_000, evaluate=150_000, discount=0.98)
    training = Training(spin(), recipe, 1, tmp_path)
    before = play_teacher(training.ppo.teacher(), 4, 0).mean()
    training.run()
    teacher = training.finish()
    training.close()
    assert before < 0.4
    assert teacher.notes["score"] > 0.65
    assert teacher.notes["steps"] == training.ppo.steps
    assert teacher.notes["recipe"]["steps"] == 150_000


@pytest.mark.parametrize(
    "name", ["pendulum-spin", "reacher-easy", "pygame-coinrun"]
)  # one that draws nothing beside the state, one that does; a game
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, name, few_episodes):
    (spec,) = get([name])
    for folder in ("whole", "stopped"):
        (tmp_path / folder).mkdir()
    recipe = dataclasses.replace(SMALL, correlation=0.5)
    whole = Training(spec, recipe, 3, tmp_path / "whole")
    whole.run()

    class Stop(Exception):
        pass

    def stop(row):
        raise Stop

    first = Training(spec, recipe, 3, tmp_path / "stopped")
    with pytest.raises(Stop):
        first.run(stop)
    second = Training(spec, recipe, 3, tmp_path / "stopped")
    assert second.ppo.steps == 512
    second.run()
    for ours, theirs in zip(second.ppo.parameters, whole.ppo.parameters, strict=True):
        assert torch.equal(ours, theirs)
    told = ("steps", "score", "train_reward", "kl")
    assert [[row[key] for key in told] for row in second.curve] == [[row[key] for key in told] for row in whole.curve]
    assert second.seconds > second.curve[0]["seconds"]
    for training in (whole, first, second):
        training.close()


def test_shaping_is_gone_when_it_should_be(tmp_path, few_episodes):
    (spec,) = get(["pendulum-swingup"])
    training = Training(spec, dataclasses.replace(SMALL, shaping=0.5), 1, tmp_path)
    weights = []
    training.run(lambda row: weights.append(training._shaped.weight))
    training.close()
    assert weights[0] > weights[1] > 0
    assert weights[-1] == 0
    for name in ("walker-walk", "pygame-coinrun"):
        with pytest.raises(ValueError, match=f"{name}: teachers.yaml asks for shaping"):
            Training(get([name])[0], dataclasses.replace(SMALL, shaping=0.5), 1, tmp_path / "other")


def test_a_game_is_shaped_by_what_draws_its_planner_on(tmp_path, few_episodes):
    (spec,) = get(["pygame-pong"])
    led = Training(spec, dataclasses.replace(SMALL, shaping=0.5), 1, tmp_path)
    plain = open_copies(spec, SMALL.copies, 1)
    action, led._shaped.weight = np.ones((SMALL.copies, 1)), 1.0
    assert (led.env.step(action).reward < plain.step(action).reward).any()  # the ball is not where the paddle is
    led.run()
    assert led._shaped.weight == 0


@pytest.mark.slow
def test_a_training_can_begin_with_what_a_planner_does(tmp_path):
    recipe = dataclasses.replace(SMALL, demos=2, hidden=64)
    training = Training(spin(), recipe, 1, tmp_path)
    cloned = play_teacher(training.ppo.teacher(), 4, 0).mean()
    assert cloned > 0.6
    policy = [part.clone() for part in training.ppo.policy.parameters()]
    training.ppo.update()  # of the value alone
    assert all(torch.equal(a, b) for a, b in zip(policy, training.ppo.policy.parameters(), strict=True))
    training.close()


def test_a_task_without_arrays_is_stepped_as_it_is(tmp_path, few_episodes):
    (spec,) = get(["lunarlander-land"])
    training = Training(spec, dataclasses.replace(SMALL, copies=4, unroll=32), 1, tmp_path)
    assert isinstance(training.env, SteppedEnv)
    training.ppo.update()
    training._evaluate({})
    going_on = Training(spec, training.recipe, 1, tmp_path)  # in other episodes
    assert not np.array_equal(going_on.env.obs, training.env.obs)
    assert going_on.ppo.steps == training.ppo.steps
    going_on.close()
    training.close()
    with pytest.raises(ValueError, match="lunarlander-land: coarseness 2: a task without an array form"):
        open_copies(spec, 4, 1, coarseness=2)


def test_values_are_of_the_time_after_a_cut_and_not_after_an_end():
    """With a value of 1 everywhere and no reward, what is cut is worth discount, what ended nothing."""

    class Env:
        task, num = spin(), 3
        obs = np.zeros((3, 3), np.float32)

        def step(self, action):
            from pipeline.batched.env import Step

            ended, cut = np.array([True, False, False]), np.array([False, True, False])
            return Step(self.obs, np.zeros(3), ended, cut, ended, self.obs)

    recipe = dataclasses.replace(SMALL, copies=3, unroll=1, discount=0.9)
    ppo = PPO(recipe, Env(), 0)
    with torch.no_grad():
        for parameter in ppo.value.parameters():
            parameter.zero_()
        ppo.value[-1].bias.fill_(1.0)
    rollout, reward = ppo.collect()
    assert reward == 0
    np.testing.assert_allclose(rollout.target[0], [0, 0.9, 0.9], atol=1e-6)
    np.testing.assert_allclose(rollout.advantage[0], [-1, -0.1, -0.1], atol=1e-6)


def test_a_teacher_is_read_as_it_was_written(tmp_path):
    teacher = random_teacher(spin(), score=0.5)
    teacher.save(tmp_path / "teacher.safetensors")
    read = load_teacher(tmp_path / "teacher.safetensors", spin())
    obs = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    np.testing.assert_allclose(read.label(obs), teacher.label(obs), atol=1e-5)
    assert read.label(obs).dtype == np.float32
    assert np.abs(read.label(100 * obs)).max() <= 1
    assert read.notes == {"score": 0.5}


def test_a_teacher_is_refused_that_does_not_fit(tmp_path):
    path = teacher_file(tmp_path, spin())
    again = f"`eft teach pendulum-spin --output {tmp_path}` trains it"
    with pytest.raises(FileNotFoundError, match=f"no teacher of pendulum-spin there: {again}"):
        load_teacher(path, spin())
    random_teacher(spin()).save(path)
    longer = dataclasses.replace(spin(), episode_length=600)
    refused = rf"is of 'pendulum-spin-\w+', expected 'pendulum-spin-\w+': another .* has changed since: {again}"
    with pytest.raises(ValueError, match=refused):
        load_teacher(path, longer)
    assert task_version(longer) != task_version(spin())
    reworded = dataclasses.replace(spin(), instructions=("Whirl.",))
    assert task_version(reworded) == task_version(spin())
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=f"not a teacher .*: {again}"):
        load_teacher(path, spin())


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        (SHIPPED / "cup-spin", "install Eft anew, or take the file back from Git"),
        (
            TEACHERS / "cup-spin",
            "`dvc repro teach` trains it if a teachers.yaml names cup-spin, else "
            "`eft teach cup-spin --output checkpoints/teach`",
        ),
        (Path("mine/cup-spin"), "`eft teach cup-spin --output mine` trains it"),
        (Path(".resume/teach-cup-spin-01"), "remove .resume/teach-cup-spin-01, and the training of cup-spin begins"),
    ],
)
def test_errors_say_what_brings_a_teacher_to_where_it_is_read(folder, message):
    (spec,) = get(["cup-spin"])
    with pytest.raises(FileNotFoundError, match=re.escape(message)):
        load_teacher(folder / "teacher.safetensors", spec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight.0": np.zeros((8, 4), np.float32)}, r"weight.0 has shape \(8, 4\), expected \(8, 3\)"),
        ({"bias.1": np.full(8, np.nan, np.float32)}, "bias.1 has values that are not finite"),
        ({"extra": np.zeros(1, np.float32), "more": np.zeros(1, np.float32)}, "not a teacher: it holds"),
        ({"std": np.array([1, 0, 1], np.float32)}, r"std, which observations are divided by, is \[1.0, 0.0, 1.0\]"),
        ({"bias.0": np.array(1, np.float32)}, r"damaged: weight.0 has shape \(8, 3\), expected \(1, 3\)"),
    ],
)
def test_a_damaged_teacher_is_refused(tmp_path, change, message):
    path = tmp_path / "teacher.safetensors"
    random_teacher(spin()).save(path)
    save_file({**load_file(path), **change}, path, {"task": task_version(spin()), "notes": "{}"})
    with pytest.raises(ValueError, match=message):
        load_teacher(path, spin())


def test_a_teacher_of_numbers_that_numpy_does_not_have_is_refused(tmp_path):
    path = tmp_path / "teacher.safetensors"
    save_bfloat16({"mean": torch.zeros(3, dtype=torch.bfloat16)}, path, {"task": task_version(spin()), "notes": "{}"})
    with pytest.raises(ValueError, match="not a teacher .*bfloat16"):
        load_teacher(path, spin())


@pytest.mark.parametrize("notes", ["[]", "null", '"score"'])
def test_a_teacher_whose_notes_are_none_is_refused_and_trained_anew(tmp_path, notes):
    path = teacher_file(tmp_path, spin())
    random_teacher(spin()).save(path)
    save_file(load_file(path), path, {"task": task_version(spin()), "notes": notes})
    with pytest.raises(ValueError, match="damaged: its notes are"):
        expert_kind(spin(), tmp_path)
    assert not Lesson(spin(), SMALL, 1).is_taught(tmp_path)


@pytest.mark.parametrize("score", ["good", float("nan"), [0.9], True, 1.5, -1])
def test_a_teacher_whose_score_is_none_is_refused(tmp_path, score):
    random_teacher(spin(), score=score).save(teacher_file(tmp_path, spin()))
    with pytest.raises(ValueError, match=r"does not say how well it plays, by a score in \[0, 1\]"):
        expert_kind(spin(), tmp_path)


def test_a_training_whose_networks_diverge_says_so_and_writes_nothing(tmp_path, few_episodes):
    training = Training(spin(), dataclasses.replace(SMALL, lr=1e30), 1, tmp_path)
    with pytest.raises(FloatingPointError, match="pendulum-spin: the networks are no longer finite after 256 steps"):
        training.run()
    training.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["cut", "another version"])
def test_a_training_that_cannot_go_on_says_what_to_remove(tmp_path, damage):
    path = tmp_path / "state.safetensors"
    if damage == "cut":
        path.write_bytes(b"0" * 100)
    else:
        save_file({"noise": np.zeros(1, np.float32)}, path, {"values": '{"env": {}}'})
    with pytest.raises(ValueError, match=f"{path}: it cannot be gone on from .* Remove {tmp_path}, and the training"):
        Training(spin(), SMALL, 1, tmp_path)


def test_a_state_that_it_cannot_read_is_refused():
    teacher = random_teacher(spin())
    with pytest.raises(ValueError, match=r"width 3, got shape \(4,\)"):
        teacher.label(np.zeros(4, np.float32))
    with pytest.raises(ValueError, match="not finite"):
        teacher.label(np.array([0, np.nan, 0], np.float32))


@pytest.mark.slow
def test_one_changed_recipe_trains_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    specs = get(["pendulum-spin", "pendulum-swingup"])
    lessons = [Lesson(spec, SMALL, 1) for spec in specs]
    first = teach_tasks(lessons, "teachers", workers=2)
    assert set(first) == {"pendulum-spin", "pendulum-swingup"}
    assert len(json.loads(Path("teachers/pendulum-spin/curve.json").read_text())) == 4
    assert not list(Path(".resume").glob("teach-*[0-9a-f]"))
    written = {name: Path(f"teachers/{name}/teacher.safetensors").stat().st_mtime_ns for name in first}
    changed = [lessons[0], dataclasses.replace(lessons[1], recipe=dataclasses.replace(SMALL, steps=1024))]
    second = teach_tasks(changed, "teachers")
    assert "pendulum-spin: there already" in capsys.readouterr().err
    assert second["pendulum-spin"] == first["pendulum-spin"]
    assert second["pendulum-swingup"]["trained_steps"] == 1024
    assert Path("teachers/pendulum-spin/teacher.safetensors").stat().st_mtime_ns == written["pendulum-spin"]
    # Alone and beside others a teacher comes out the same.
    alone = teach_tasks(lessons[:1], "alone", workers=1)
    assert (
        load_file("alone/pendulum-spin/teacher.safetensors").keys()
        == load_file("teachers/pendulum-spin/teacher.safetensors").keys()
    )
    assert alone["pendulum-spin"]["score"] == first["pendulum-spin"]["score"]


def test_a_teacher_that_is_no_longer_wanted_goes_and_that_is_said(tmp_path, capsys):
    for name in ("pendulum-spin", "cup-catch"):
        (tmp_path / name).mkdir()
    teaching.remove_others(tmp_path, [spin()])
    assert [path.name for path in tmp_path.iterdir()] == ["pendulum-spin"]
    assert capsys.readouterr().err == "teach: cup-catch: removed, since no teacher of it is wanted (any more)\n"


def test_two_trainings_do_not_write_one_teacher(tmp_path, monkeypatch, few_episodes):
    monkeypatch.chdir(tmp_path)
    Path("teachers").mkdir()
    with hold_output(Path("teachers/pendulum-spin"), "eft teach"):
        with pytest.raises(ValueError, match=r"another `eft teach` is going to write into .*/teachers/pendulum-spin"):
            teaching.train(Lesson(spin(), SMALL, 1), Path("teachers"))
        left_over = Path("teachers/.pendulum-spin.lock")
        assert left_over.is_file()
        teaching.remove_others(Path("teachers"), [spin()])
        assert left_over.is_file()  # a training is at work
    left_over.touch()  # as a killed one leaves it
    teaching.remove_others(Path("teachers"), [spin()])
    assert not left_over.exists()


@pytest.mark.slow
def test_a_killed_training_goes_on(tmp_path):
    """The same command, killed after its first evaluation, goes on from there and leaves nothing half-written."""
    code = (
        "import dataclasses, sys\n"
        "from pipeline.demonstrate.teach import usual_recipe\n"
        "from pipeline.demonstrate.teach_tasks import Lesson, teach_tasks\n"
        "from pipeline.tasks.registry import get\n"
        "recipe = dataclasses.replace(usual_recipe(), steps=81920, hidden=16, evaluate=8192)\n"
        "teach_tasks([Lesson(get(['pendulum-spin'])[0], recipe, 1)], 'teachers', workers=1)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".resume/teach-pendulum-spin-*/state.safetensors")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "teachers/pendulum-spin/teacher.safetensors").exists()
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    curve = json.loads((tmp_path / "teachers/pendulum-spin/curve.json").read_text())
    assert [row["steps"] for row in curve] == [8192 * number for number in range(1, 11)]
    names = sorted(path.name for path in (tmp_path / "teachers/pendulum-spin").iterdir())
    assert names == ["curve.json", "teacher.safetensors"]


def test_teachers_that_come_with_eft_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(teaching, "SHIPPED", tmp_path / "shipped")
    recipe = teaching.TypeAdapter(type(SMALL)).dump_python(SMALL)
    random_teacher(spin(), recipe=recipe, seed=9, score=0.5).save(teacher_file(tmp_path / "shipped", spin()))
    notes = teach_tasks([Lesson(spin(), SMALL, 1)], tmp_path / "teachers", shipped=True)
    assert notes["pendulum-spin"]["seed"] == 9
    assert "the teacher that comes with Eft" in capsys.readouterr().err


def test_who_demonstrates_is_who_scores_better(tmp_path):
    assert expert_method(spin(), tmp_path) == "planner"
    assert expert_kind(spin(), tmp_path) is None
    for score, expected in ((planned()["pendulum-spin"].score - 0.05, "teacher"), (0.1, "planner")):
        random_teacher(spin(), score=score).save(teacher_file(tmp_path, spin()))
        assert expert_method(spin(), tmp_path) == expected
    assert expert_kind(spin(), tmp_path) is None  # who demonstrates labels, and a planner cannot
    random_teacher(spin()).save(teacher_file(tmp_path, spin()))
    with pytest.raises(ValueError, match="does not say how well it plays"):
        expert_kind(spin(), tmp_path)
    with pytest.raises(ValueError, match="cup-catch has no expert that can be asked"):
        open_expert(get(["cup-catch"])[0], None, tmp_path)


def test_a_teacher_demonstrates(tmp_path):
    teacher = random_teacher(spin(), score=0.9)
    teacher.save(teacher_file(tmp_path, spin()))
    episode = play(spin(), 1, 1, 0.5, tmp_path)
    assert episode.method == "teacher"
    np.testing.assert_allclose(episode.expert_action, teacher.label(episode.obs[:-1]), atol=1e-5)
    assert not np.array_equal(episode.action, episode.expert_action)  # every second one is disturbed
    assert least_score(spin(), tmp_path) == pytest.approx(0.63)


MY_TASK = """\
name: my-task
suite: gymnasium
env_id: Pendulum-v1
embodiment: A pendulum.
instructions: [Stand up.]
obs_dim: 3
action_dim: 1
action_repeat: 1
episode_length: 200
score: clip((return+1500)/1500,0,1)
"""


def test_recipes_are_of_tasks_and_say_what_is_wrong(tmp_path):
    assert set(load_recipes()) <= set(load_catalogue())
    assert set(TEACHING) <= set(load_catalogue())
    (tmp_path / "my-task.yaml").write_text(MY_TASK)
    (tmp_path / "teachers.yaml").write_text("tasks:\n  my-task: {steps: 1000}\n  pendulum-spin: {lr: 1e-4}\n")
    own = load_recipes(tmp_path)
    assert own["my-task"] == dataclasses.replace(usual_recipe(), steps=1000)
    assert own["pendulum-spin"].lr == 1e-4
    (tmp_path / "teachers.yaml").write_text("tasks:\n  my-task: {step: 1000, lr: -1}\n")
    with pytest.raises(ValueError, match=r"(?s)teachers.yaml: my-task: `lr` is -1: .*`step` is not .*mean `steps`"):
        load_recipes(tmp_path)
    wrong = {
        "lr: .inf": "`lr` is inf: Input should be a finite number",
        "entropy: .nan": "`entropy` is nan: Input should be a finite number",
        "discount: 1": "`discount` is 1: Input should be less than 1",
        "min_std: [2, 0.1]": "`min_std.0` is 2: Input should be less than or equal to 1",
        "copies: 1, unroll: 1": "`copies` x `unroll` is 1 step",
        "demos: 1, begins_as: cartpole-balance": "`demos` and `begins_as` both say",
    }
    for values, message in wrong.items():
        (tmp_path / "teachers.yaml").write_text(f"tasks:\n  my-task: {{{values}}}\n")
        with pytest.raises(ValueError, match=f"my-task: {re.escape(message)}"):
            load_recipes(tmp_path)
    (tmp_path / "teachers.yaml").write_text("all: {steps: 1000}\ntasks: {my-task: {}}\n")
    with pytest.raises(ValueError, match="'all' beside `tasks:` would not be read"):
        load_recipes(tmp_path)
    for content in ("my-task: {steps: 1000}\n", "tasks: {my-task: 3}\n", "tasks: {3: {}}\n", ""):
        (tmp_path / "teachers.yaml").write_text(content)
        with pytest.raises(ValueError, match="expected `tasks:`"):
            load_recipes(tmp_path)
    (tmp_path / "teachers.yaml").write_text("tasks: {\n")
    with pytest.raises(ValueError, match="teachers.yaml is not valid YAML"):
        load_recipes(tmp_path)
    assert load_recipes(tmp_path / "none") == load_recipes()


@pytest.mark.parametrize(("task", "near"), [("my-taks", "my-task"), ("pendulum-spni", "pendulum-spin"), ("qqq", None)])
def test_a_recipe_of_no_task_is_refused_and_the_near_one_named(tmp_path, task, near):
    (tmp_path / "my-task.yaml").write_text(MY_TASK)
    file = tmp_path / "teachers.yaml"
    file.write_text(f"tasks:\n  my-task: {{}}\n  {task}: {{steps: 1000}}\n")
    meant = f" Did you mean `{near}`" if near else " `eft tasks` lists"
    for place in (tmp_path, tmp_path / "my-task.yaml"):
        with pytest.raises(ValueError, match=f"{file}: task `{task}` is not known, so .* its line\\.{meant}"):
            load_recipes(place)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/teacher.safetensors")), ids=lambda path: path.parent.name)
def test_teachers_that_come_with_eft_fit_their_tasks(path):
    (spec,) = get([path.parent.name])
    teacher = load_teacher(path, spec)
    env = make(spec, spec.obs_dim, spec.action_dim)
    obs, _ = env.reset(seed=0)
    assert teacher.label(obs).shape == (spec.action_dim,)
    assert Lesson(spec, load_recipes()[spec.name], 1).is_taught(SHIPPED, any_seed=True)
    env.close()


def test_a_teacher_begins_as_that_of_another_task_and_that_counts_as_its_first_try(tmp_path, few_episodes):
    (sparse,) = get(["cartpole-balance-sparse"])
    recipe = dataclasses.replace(load_recipes()[sparse.name], steps=2048, copies=16, unroll=16, minibatch=128)
    training = Training(sparse, recipe, 1, tmp_path)
    training.run()
    teacher = training.finish()
    training.close()
    assert training.curve[0]["steps"] == 0
    assert teacher.notes["score"] > 0.95  # a few steps of training teach nobody to balance
    other = dataclasses.replace(recipe, begins_as="quadruped-run")
    with pytest.raises(ValueError, match="cartpole-balance-sparse cannot begin as the teacher of quadruped-run"):
        Training(sparse, other, 1, tmp_path / "other")
    with pytest.raises(ValueError, match="begin as the teacher of 'acrobat'.* there is none"):
        Training(sparse, dataclasses.replace(recipe, begins_as="acrobat"), 1, tmp_path / "unknown")
