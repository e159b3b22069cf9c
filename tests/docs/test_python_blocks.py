"""Every Python block of README and docs runs, those of a page one after the other, on small untrained checkpoints."""

from __future__ import annotations

import builtins
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from pipeline.agent import Agent
from pipeline.batched.form import ArrayForm
from pipeline.data.demos import write_card, write_episodes
from pipeline.data.episode import Episode
from pipeline.tasks import registry
from tests.docs.bases import make_base
from tests.docs.blocks import ROOT, of_language

pytestmark = pytest.mark.slow  # simulators run

ELSEWHERE = {"CONTRIBUTING.md", "docs/tutorial.md"}  # followed by tests of their own
PAGES = sorted({block.page for block in of_language("python")} - ELSEWHERE)
KNOWN = ["mw-reach", "mw-drawer-close", "mw-door-open"]
SEEN = np.zeros(39, np.float32)
# What a block takes for given, by its page and number on it.
GIVEN: dict[tuple[str, int], dict[str, Any]] = {
    ("docs/how-to/checkpoint.md", 0): {"obs": SEEN},
    ("my_tasks/README.md", 0): {"range": lambda steps: builtins.range(min(steps, 3))},  # not all of its 1000 steps
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that looks like one in which the pipeline has run."""
    folder, before = tmp_path_factory.mktemp("workplace"), Path.cwd()
    os.chdir(folder)
    agent = make_base(registry.get(KNOWN), head=True)
    agent.save_pretrained("checkpoints/publish/release")
    agent = Agent.from_pretrained("checkpoints/publish/release")
    agent.create_adapter("mw-drawer-close", ["policy"], rank=2, alpha=4.0)
    agent.save_adapter("checkpoints/publish/release/adapters/mw-drawer-close", "mw-drawer-close")
    zeros = np.zeros((2, 4), np.float32)
    steps = {"obs": np.zeros((3, 39), np.float32), "action": zeros, "expert_action": zeros, "reward": zeros[:, 0]}
    outcome = {"terminated": False, "success": True, "score": 1.0, "episode_return": 0.0, "seed": 0}
    episode = Episode(task="mw-reach", **steps, **outcome, method="scripted")
    write_episodes("datasets/demos/mw-reach/episodes.parquet", [episode])
    write_card("datasets/demos", ["mw-reach"])
    shutil.copytree(ROOT / "checkpoints/finetune/metrics", folder / "checkpoints/finetune/metrics")
    (folder / "pipeline").symlink_to(ROOT / "pipeline")
    (folder / "checkpoints/base").symlink_to(ROOT / "checkpoints/base")
    registered = dict(gymnasium.registry)
    make_arm()
    yield folder
    gymnasium.registry.clear()
    gymnasium.registry.update(registered)
    os.chdir(before)


def make_arm() -> None:
    """Register the environment of my_tasks/README.md's loop, and train nobody for it."""
    pendulum = "gymnasium.envs.classic_control:PendulumEnv"
    gymnasium.register("lab/Arm-v0", entry_point=pendulum, max_episode_steps=2)
    text = (ROOT / "my_tasks/README.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    Path("arm.yaml").write_text(text.replace("name: pendulum-upright", "name: arm"), encoding="utf-8")
    make_base([registry.load_file("arm.yaml")]).save_pretrained("checkpoints/finetune/model")


def run(page: str) -> list[dict[str, Any]]:
    """Run the blocks of a page in one namespace; return what it held after each."""
    namespace, after = {"__name__": "__main__"}, []
    for number, block in enumerate(block for block in of_language("python") if block.page == page):
        namespace |= GIVEN.get((page, number), {})
        if page == "examples/README.md":
            sys.path.insert(0, str(ROOT / "examples/eft_push"))
            namespace |= vars(__import__("push"))
            sys.path.pop(0)
        exec(compile(block.text, str(block), "exec"), namespace)
        after.append(dict(namespace))
    return after


@pytest.mark.parametrize("page", PAGES)
def test_a_pages_blocks_run(workplace: Path, page: str):
    last = run(page)[-1]
    if page == "examples/README.md":
        assert isinstance(last["array_form"](None), ArrayForm)
    if page == "datasets/README.md":
        assert [row["task"] for row in last["rows"]] == ["mw-reach"]
    if page == "docs/reference/metrics.md":
        assert all("step" in row for row in last["rows"])


def test_what_is_given_is_used():
    numbers = {
        (block.page, n) for page in PAGES for n, block in enumerate(b for b in of_language("python") if b.page == page)
    }
    assert set(GIVEN) <= numbers
