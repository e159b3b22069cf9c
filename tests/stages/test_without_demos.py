"""A task that nobody demonstrates goes through every stage and learns online alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.agent import Agent
from pipeline.results import read_curves
from stages import demos, embed, evaluate, finetune, pretrain, report

ROOT = Path(__file__).parents[2]
OWN = {
    "gym-swing": ["Swing the pole up.", "Make the pole stand.", "Let the pole point upwards."],
    "gym-spin": ["Spin the pole.", "Turn the pole round and round.", "Keep the pole turning."],
}

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with small parameters: a task with a scripted expert, and two of the user's own without any."""
    shutil.copy(ROOT / "tests/tiny.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    change(
        tasks={"train": ["mw-drawer-open", "gym-swing"], "held_out": ["gym-spin"], "pairs": []},
        demos={"missing": "go_on", "workers": 1},
        pretrain={"updates": 4, "eval_every": 4, "eval_episodes": 1},
        finetune={"env_steps": 520, "log_every": 520, "eval_every": 520, "eval_episodes": 1},
        evaluate={"open_loop_steps": [], "video_size": 0},
    )
    (tmp_path / "my_tasks").mkdir()
    for name, instructions in OWN.items():
        content = {
            "name": name, "suite": "gymnasium", "env_id": "Pendulum-v1", "embodiment": "A pole hangs on a hinge.",
            "instructions": instructions, "obs_dim": 3, "action_dim": 1, "action_repeat": 1, "episode_length": 100,
            "score": "clip((return+1000)/1000,0,1)",
        }  # fmt: skip
        with (tmp_path / f"my_tasks/{name}.yaml").open("w") as file:
            YAML(typ="safe").dump(content, file)
    return tmp_path


def change(**sections: dict[str, Any]) -> None:
    """Change values in params.yaml."""
    params = YAML(typ="safe").load(Path("params.yaml").read_text())
    for section, values in sections.items():
        params[section] |= values
    with Path("params.yaml").open("w") as file:
        YAML(typ="safe").dump(params, file)


def test_a_task_without_demonstrations_learns_online(project, capsys):
    demos.main()
    told = capsys.readouterr().err
    assert "demos: gym-swing: no expert" in told
    assert "WARNING: 2 tasks have fewer demonstrations than wanted, or none" in told
    assert set(json.loads(Path("datasets/demos.json").read_text())["missing"]) == {
        "gym-swing",
        "gym-spin",
    }
    for stage in (embed, pretrain, finetune, evaluate, report):
        stage.main()
    table = Agent.from_pretrained("checkpoints/finetune/model").table
    row = table.names.index("gym-swing")
    assert (table.obs_std[row] != 1).any(), "how its observations vary was seen in an episode of random actions"
    curves = read_curves(Path("checkpoints/finetune/metrics"))
    assert {"online/gym-swing", "eval/gym-swing", "online/mw-drawer-open"} <= set(curves)
    scores = json.loads(Path("checkpoints/evaluate/metrics/scores.json").read_text())
    assert "gym-swing" in scores["models"]["finetune"]["plan"]
    assert "gym-swing: no expert" in Path("checkpoints/report/report.html").read_text()

    shutil.rmtree("datasets/demos/mw-drawer-open")
    with pytest.raises(FileNotFoundError, match="mw-drawer-open"):
        pretrain.main()


def test_without_any_demonstrations_everything_is_learned_online(project):
    change(tasks={"train": ["gym-swing"]})
    for stage in (demos, embed):
        stage.main()
    with pytest.raises(ValueError, match=r"none of the tasks has demonstrations: set pretrain\.updates to 0"):
        pretrain.main()
    change(pretrain={"updates": 0}, finetune={"env_steps": 260})
    pretrain.main()
    finetune.main()
    assert json.loads(Path("checkpoints/pretrain/metrics/summary.json").read_text())["demonstrations"] == 0
    assert "online/gym-swing" in read_curves(Path("checkpoints/finetune/metrics"))
