"""Every command in README and docs exists, with the options it is given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.docs.blocks import BLOCKS, Block, code_spans, of_language
from tests.docs.shell import check_command, commands

PROGRAMS = ("eft", "make", "dvc", "torchrun")
ROOT = Path(__file__).parents[2]
SPANS = [found for found in code_spans() if found[1].split()[0] in PROGRAMS or found[1].startswith("python -m ")]


def test_every_block_says_what_it_is():
    known = {"python", "bash", "yaml", "mermaid", "text", ""}  # the last two are what a command prints, or a formula
    assert [str(block) for block in BLOCKS if block.language not in known] == []
    assert len(of_language("bash")) > 20


def test_a_diagram_names_the_stages_in_their_order():
    (block,) = of_language("mermaid")
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    steps = re.split(r" --> |\n", block.text)
    drawn = dict.fromkeys(step.strip().partition("[")[0] for step in steps if step.strip() and "flowchart" not in step)
    assert list(drawn) == list(stages)


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1200


@pytest.mark.parametrize("block", of_language("bash"), ids=str)
def test_a_block_of_commands_would_run(block: Block):
    found = list(commands(block.text))
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize(("page", "span"), SPANS)
def test_a_command_in_a_sentence_exists(page: str, span: str):
    for words in commands(span):
        if len(words) > 1:
            check_command(words, whole=False)


@pytest.mark.parametrize(
    "line",
    [
        "eft fly",
        "eft adapt base --task t --demonstrations d",
        "eft act base",
        "make everything",
        "dvc repro finetun",
        "pip install 'eft[jaxx]'",
        "python -m benchmarks.none",
        "python -m benchmarks.learning --sed 1",
        "accelerate launch --num_process 2 -m stages.finetune",
        "torchrun --nproc-per-node 4 -m stages.fine",
        'EFT_LAUNCH="torchrun --nproc 4" dvc repro',
        "python train.py",
        "frobnicate",
    ],
)
def test_what_would_not_run_is_found(line: str):
    with pytest.raises(ValueError, match=r"no |not |required|unrecognized|invalid|only|ambiguous"):
        for words in commands(line):
            check_command(words)


def test_a_wrong_option_in_a_sentence_is_found():
    check_command(["eft", "adapt", "--demos"], whole=False)
    with pytest.raises(ValueError, match="knows no --demo$"):
        check_command(["eft", "adapt", "--demo"], whole=False)
