import collections
import dataclasses
import re
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from pipeline.tasks import registry

ROOT = Path(__file__).parents[2]
OWN = """
name: {name}
suite: gymnasium
env_id: Pendulum-v1
embodiment: A pole hangs on a motor.
instructions: [{text}]
obs_dim: 3
action_dim: 1
action_repeat: 1
episode_length: 200
score: return/1000
"""


@pytest.fixture(scope="module")
def catalogue():
    return registry.load_catalogue()


def test_every_task_has_five_phrasings_and_no_text_is_shared(catalogue):
    owners = collections.defaultdict(set)
    for spec in catalogue.values():
        assert len(spec.instructions) >= 5, spec.name
        for instruction in spec.instructions:
            assert re.fullmatch(r"[A-Z].*[a-z0-9]\.", instruction), instruction
            owners[spec.embodiment, instruction].add(spec.name)
    assert [names for names in owners.values() if len(names) > 1] == []


def test_tasks_of_one_body_share_its_sentence(catalogue):
    sentences = collections.defaultdict(set)
    for spec in catalogue.values():
        if spec.suite in ("dmcontrol", "metaworld", "box2d"):
            body = "arm" if spec.suite == "metaworld" else spec.env_id.split("/")[0]
            sentences[spec.suite, body, spec.obs_dim].add(spec.embodiment)
    assert {body for body, said in sentences.items() if len(said) > 1} == set()


def test_every_text_belongs_to_a_task_and_every_sentence_to_a_text(catalogue):
    for path in set(registry.TEXTS.glob("*.yaml")) - {registry.TEXTS / "nothing.yaml"}:  # what means no task
        texts = YAML(typ="safe").load(path.read_text())
        assert set(texts["tasks"]) <= set(catalogue), path
        assert {words["embodiment"] for words in texts["tasks"].values()} == set(texts["embodiments"]), path


def test_get_keeps_the_order_and_names_near_matches():
    assert [spec.name for spec in registry.get(["mw-reach", "cup-spin"])] == ["mw-reach", "cup-spin"]
    with pytest.raises(ValueError, match="task `walker-wlak` is not known. Did you mean `walker-walk`"):
        registry.get(["walker-wlak"])


def test_own_file_joins_the_catalogue(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN.format(name="mine", text="Swing it up."))
    (tmp_path / "README.md").write_text("not a task")
    catalogue = registry.load_catalogue(tmp_path)
    assert catalogue["mine"].split == "custom"
    assert len(catalogue) == len(registry.load_catalogue()) + 1


def test_a_module_beside_an_own_file_is_found_by_the_tasks_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    own = OWN.format(name="mine", text="Swing it up.").replace("Pendulum-v1", "beside_it:lab/Beside-v0")
    (tmp_path / "mine.yaml").write_text(own)
    register = "gymnasium.register('lab/Beside-v0', entry_point='gymnasium.envs.classic_control:PendulumEnv')"
    (tmp_path / "beside_it.py").write_text(f"import gymnasium\n\n{register}\n")
    env = registry.make(registry.get(["mine"], tmp_path)[0], 3, 1)
    env.close()


def test_name_clash_names_both_files(tmp_path):
    (tmp_path / "mine.yaml").write_text(OWN.format(name="walker-walk", text="Swing it up."))
    with pytest.raises(ValueError, match=r"mine\.yaml: the task name `walker-walk` is taken by .*dmcontrol\.yaml"):
        registry.load_catalogue(tmp_path)


def test_text_clash_names_both_tasks_and_ignores_case_and_punctuation(tmp_path):
    (tmp_path / "a.yaml").write_text(OWN.format(name="a", text="Swing it up."))
    (tmp_path / "b.yaml").write_text(OWN.format(name="b", text="swing it up"))
    with pytest.raises(ValueError, match=r"`a` and `b` share the text"):
        registry.load_catalogue(tmp_path)


def test_a_text_twice_in_one_task_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text(OWN.format(name="a", text="Swing it up., Swing it up!"))
    with pytest.raises(ValueError, match=r"the task `a` has the text .* twice"):
        registry.load_catalogue(tmp_path)


def test_broken_yaml_and_missing_files_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("name: [")
    with pytest.raises(ValueError, match=r"a\.yaml is not valid YAML"):
        registry.load_catalogue(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        registry.load_file(tmp_path / "b.yaml")
    with pytest.raises(ValueError, match=r"nowhere, does not exist"):
        registry.load_catalogue(tmp_path / "nowhere")


def test_the_example_in_the_readme_is_a_task_that_runs(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "my_tasks" / "README.md").read_text(), re.DOTALL)
    assert example
    (tmp_path / "example.yaml").write_text(example[1])
    spec = registry.load_catalogue(tmp_path)["pendulum-upright"]
    env = registry.make(spec, 8, 2)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[0].shape == (8,)
    env.close()


def test_unknown_simulator_task_names_near_matches():
    spec = registry.get(["walker-walk"])[0]
    with pytest.raises(ValueError, match="Did you mean `walker/walk`"):
        registry.make(dataclasses.replace(spec, env_id="walker/wallk"), 24, 6)
    reach = registry.get(["mw-reach"])[0]
    with pytest.raises(ValueError, match="Did you mean `reach-v3`"):
        registry.make(dataclasses.replace(reach, env_id="reach-v2"), 39, 4)
