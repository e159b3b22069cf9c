"""The tutorial, from its first line to its last, with less training and a small untrained base."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.tasks import registry
from tests.docs.bases import make_base, prepare
from tests.docs.blocks import ROOT, blocks_of
from tests.docs.shell import commands

pytestmark = pytest.mark.slow  # it trains an adapter

LESS = {
    "episode_length: 200": "episode_length: 20",
    "--env-steps 2000": "--env-steps 120",
    " --video upright.mp4": "",
}


def test_its_commands_and_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    make_base(registry.get(["mw-reach"])).save_pretrained("checkpoints/base")
    text, namespace = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), {"__name__": "__main__"}
    for whole in LESS:
        assert whole in text
    for block in blocks_of(ROOT / "docs/tutorial.md"):
        less = block.text
        for whole, part in LESS.items():
            less = less.replace(whole, part)
        if block.language == "yaml":
            Path("my_tasks/pendulum-upright.yaml").write_text(less, encoding="utf-8")
        elif block.language == "python":
            exec(compile(less, str(block), "exec"), namespace)
        else:
            for words in commands(less):
                assert words[0] == "eft"
                assert not main(words[1:]), f"{shlex.join(words)}: {capsys.readouterr().err}"
    assert (tmp_path / "adapted/pendulum-upright/adapter_config.json").exists()
    assert len(namespace["episodes"]) == 5
