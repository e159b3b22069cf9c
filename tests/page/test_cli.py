"""`eft play` before the page is there: what is missing, and what is damaged."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from pipeline.cli import build_parser, main
from pipeline.cli.play import _session, load
from pipeline.page.session import Session
from pipeline.tasks import registry
from pipeline.tasks.domains import DomainUnavailable
from pipeline.tasks.registry import get
from tests.page.untrained import make_agent

pytestmark = pytest.mark.slow  # simulators run for real


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "my <b>model</b>, näme 100%"
    make_agent(get(["pendulum-swingup", "pygame-pong"])).save_pretrained(folder)
    return folder


def options(*arguments: str | Path) -> argparse.Namespace:
    return build_parser().parse_args(["play", *map(str, arguments)])


def test_without_its_text_encoder_it_says_so_once_and_at_once(checkpoint, capsys, monkeypatch):
    path = checkpoint / "task_embeddings/texts.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"encoder": "gone@0123456789abcdef"}))
    agent, first, tasks = load(options(checkpoint))
    assert "not in the Hub's cache" in capsys.readouterr().err
    # Sentences do not look for it again, which may take a network's timeout each.
    monkeypatch.setattr("pipeline.language.head.find_encoder", lambda _: pytest.fail("it was looked for again"))
    session = Session(agent, first, tasks)
    session.ask(lambda: session.tell("Whirl it upwards, would you?"))
    session.obey()
    assert "not in the Hub's cache" in (session.problem or "")
    session.ask(lambda: session.tell(tasks["pygame-pong"].instructions[0]))
    session.obey()
    assert (session.problem, session.spec.name) == (None, "pygame-pong")
    assert session.advance()
    session.close()


def test_a_task_whose_simulator_is_missing_is_passed_over_unless_it_was_asked_for(checkpoint, capsys, monkeypatch):
    def make(spec, *sizes):
        if spec.name == "pendulum-swingup":
            raise DomainUnavailable("its simulator is not installed")
        return registry.make(spec, *sizes)

    monkeypatch.setattr("pipeline.page.session.make", make)
    agent, first, tasks = load(options(checkpoint))
    session = _session(agent, first, tasks, options(checkpoint))
    assert session.spec.name == "pygame-pong"
    assert "pendulum-swingup cannot be played: its simulator is not installed" in capsys.readouterr().err
    session.close()
    asked = options(checkpoint, "--task", "pendulum-swingup")
    with pytest.raises(DomainUnavailable):
        _session(agent, first, tasks, asked)


@pytest.mark.parametrize(
    "name", ["tasks.json", "config.json", "model.safetensors", "task_embeddings/vectors.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "gone", "garbage"])
def test_a_damaged_checkpoint_is_named_and_no_page_opens(checkpoint, capsys, name, damage):
    path = checkpoint / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"\xff\x00{" * 50)
    assert main(["play", str(checkpoint)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("eft play: ")
    assert str(checkpoint) in said.err


@pytest.mark.parametrize("command", ["play", "act"])
@pytest.mark.parametrize("seed", ["-1", "4294967296", "one"])
def test_a_seed_is_one_that_every_simulator_takes(command, seed, capsys):
    with pytest.raises(SystemExit):
        main([command, "x", "--task", "x", "--seed", seed])
    assert "expected a whole number from 0 to 4294967295" in capsys.readouterr().err
