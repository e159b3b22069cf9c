"""A task that nobody demonstrates goes through every stage and learns online alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipeline.agent import Agent
from pipeline.report.results import read_curves
from stages import demos, embed, evaluate, finetune, pretrain, report

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A folder with small parameters: a task with a scripted expert, and two of another simulator without any."""
    shutil.copy(ROOT / "tests/tiny.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    change(
        tasks={"train": ["mw-drawer-open", "lunarlander-land"], "held_out": ["lunarlander-hover"], "pairs": []},
        demos={"missing": "go_on", "workers": 1},
        pretrain={"updates": 4, "eval_every": 4, "eval_episodes": 1},
        finetune={"env_steps": 520, "log_every": 520, "eval_every": 520, "eval_episodes": 1},
        evaluate={"open_loop_steps": [], "video_size": 0},
    )
    (tmp_path / "my_tasks").mkdir()
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
    assert "demos: lunarlander-land: no expert" in told
    assert "WARNING: 2 tasks have fewer demonstrations than wanted, or none" in told
    assert set(json.loads(Path("datasets/demos.json").read_text())["missing"]) == {
        "lunarlander-land",
        "lunarlander-hover",
    }
    for stage in (embed, pretrain, finetune, evaluate, report):
        stage.main()
    table = Agent.from_pretrained("checkpoints/finetune/model").table
    row = table.names.index("lunarlander-land")
    assert (table.obs_std[row] != 1).any(), "how its observations vary was seen in an episode of random actions"
    curves = read_curves(Path("checkpoints/finetune/metrics"))
    assert {"online/lunarlander-land", "eval/lunarlander-land", "online/mw-drawer-open"} <= set(curves)
    scores = json.loads(Path("checkpoints/evaluate/metrics/scores.json").read_text())
    assert "lunarlander-land" in scores["models"]["finetune"]["plan"]
    assert "lunarlander-land: no expert" in Path("checkpoints/report/report.html").read_text()

    shutil.rmtree("datasets/demos/mw-drawer-open")
    with pytest.raises(FileNotFoundError, match="mw-drawer-open"):
        pretrain.main()


def test_without_any_demonstrations_everything_is_learned_online(project):
    change(tasks={"train": ["lunarlander-land"]})
    for stage in (demos, embed):
        stage.main()
    with pytest.raises(ValueError, match=r"none of the tasks has demonstrations: set pretrain\.updates to 0"):
        pretrain.main()
    change(pretrain={"updates": 0}, finetune={"env_steps": 260})
    pretrain.main()
    finetune.main()
    assert json.loads(Path("checkpoints/pretrain/metrics/summary.json").read_text())["demonstrations"] == 0
    assert "online/lunarlander-land" in read_curves(Path("checkpoints/finetune/metrics"))
