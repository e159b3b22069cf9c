"""Counting the structure of a checkout, on a small one of known numbers, and on this one."""

import shutil
import subprocess
from dataclasses import replace

import pytest

from benchmarks import count
from benchmarks.call_graph import CallGraph
from benchmarks.count import Layout

NET = '''"""Networks."""
from __future__ import annotations

from typing import Any

from pipeline.model import shapes
from pipeline.model.parts import Head as Top
from pipeline.systems.extra import Wide


class Net:
    """A network."""

    head: Any

    def __init__(self, size: int):
        # A comment is no code.
        self.heads = [Top() for _ in range(size)]
        self.size = size

    def __call__(self, x, experts=None):
        if experts is not None:
            return x
        first, *_ = self.heads
        return first(x) if self.size else shapes.flat(x)

    def never(self) -> Wide:
        return Wide()
'''
PARTS = """
from pipeline.model.base import Base
from pipeline.model.unused import UNUSED


class Head(Base):
    def forward(self, x: UNUSED):
        return self.scaled(x)
"""
BASE = """
from pipeline.model.rules import refuse


class Base:
    def scaled(self, x):
        assert x is not None, "memory"
        if not x:
            raise ValueError(refuse(x))
        return x
"""
LEARN = '''
from functools import partial

from pipeline.learn.losses import loss
from pipeline.model.net import Net


class Learner:
    def __init__(self, net: Net, hooks: list):
        self.net, self.hooks = net, hooks

    def update(self, batch):
        """Learn.

        At length.
        """
        history = [hook for hook in self.hooks if hook.history]
        while len(history) and batch.past is None:
            history.pop()
        self._step(partial(loss, self.net))
        return {"a": 1,
                "b": 2}

    def _step(self, of):
        return of()
'''
EXTRA = """
from pipeline.model.parts import Head


class Wide(Head):
    def scaled(self, x):
        return x
"""
TREE = {
    "pipeline/model/net.py": NET,
    "pipeline/model/parts.py": PARTS,
    "pipeline/model/base.py": BASE,
    "pipeline/model/unused.py": "UNUSED = int\n",
    "pipeline/model/rules.py": "def refuse(x):\n    return x\n",
    "pipeline/model/shapes.py": "def flat(x):\n    return x\n",
    "pipeline/learn/learner.py": LEARN,
    "pipeline/learn/losses.py": "def loss(net):\n    return net(1)\n",
    "pipeline/systems/extra.py": EXTRA,
    "params.yaml": "loss_coef: 1\n",
}
LAYOUT = Layout(
    core=("pipeline/model", "pipeline/learn"),
    rooms={"systems": ("pipeline/systems",), "losses": ("pipeline/learn/losses.py",)},
    update="pipeline/learn/learner.py:Learner.update",
    plan=("pipeline/model/net.py:Net.__call__", "pipeline/model/base.py:Base.scaled"),
    new_loss=(("params.yaml", "loss_coef"), ("pipeline/learn/losses.py", "def loss")),
)


@pytest.fixture(scope="module")
def counts():
    return count.count(TREE, LAYOUT)


def test_lines_of_code_are_neither_blank_nor_comment_nor_docstring(counts):
    assert count.code_lines('"""A."""\n\n# b\nx = """c\nd"""\n\n\ndef f():\n    """E."""\n    return 1  # f\n') == {
        4,
        5,
        8,
        10,
    }
    # Taken out of the core is what a room of its own holds.
    assert counts.lines["losses"] == (1, 2, 2)
    assert counts.lines["systems"] == (1, 4, 7)
    assert counts.lines["core"][0] == 7
    assert counts.lines["core"][1:] == (
        sum(len(count.code_lines(text)) for path, text in TREE.items() if "/model/" in path or "learner" in path),
        sum(text.count("\n") for path, text in TREE.items() if "/model/" in path or "learner" in path),
    )


def test_conditionals_count_where_they_name_another_system(counts):
    assert [place.partition(": ")[2] for place in counts.conditionals] == [
        "history = [hook for hook in self.hooks if hook.history]",
        "while len(history) and batch.past is None:",
        "if experts is not None:",
    ]
    line = NET.splitlines().index("        if experts is not None:") + 1
    assert counts.conditionals[-1].startswith(f"pipeline/model/net.py:{line}: ")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("x = 1 if self.config.clusters else 2", 1),
        ("x = isinstance(told, ConditionedHistory) or y", 1),
        ("x = memory or begin()", 1),
        ("known = batch.past is not None", 1),
        ("if 'cluster' in state and clusters is not None: pass", 1),
        ("match experts:\n    case None: pass", 1),
        ("if a: pass\nelif past: pass", 1),
        ("if expert_action is None: pass", 0),
        ("if termination_head is None: pass", 0),
        ("if compassed: pass", 0),
        ("assert past is None", 0),
        ("x = experts(past)", 0),
    ],
)
def test_what_is_a_conditional_of_another_system(line, found):
    assert len(count.conditionals("a.py", line)) == found


def test_the_files_of_an_update_are_those_it_reaches(counts):
    # Through an attribute, a list of modules, an inherited method and a function that is passed on. Not: what only an
    # annotation, a `raise`, or a method that is never called names, and a subclass in another folder.
    assert counts.update == {
        "pipeline/learn/learner.py",
        "pipeline/learn/losses.py",
    }
    assert counts.plans == {
        "pipeline/model/net.py:Net.__call__": {
            f"pipeline/model/{name}.py" for name in ("net", "parts", "base", "shapes")
        },
        "pipeline/model/base.py:Base.scaled": {"pipeline/model/base.py"},
    }


def test_hooks_of_other_systems_are_left_out():
    layout = replace(LAYOUT, plan=LAYOUT.plan[:1], hooks=("pipeline/model/parts.py",))
    (files,) = count.count(TREE, layout).plans.values()
    assert files == {"pipeline/model/net.py", "pipeline/model/shapes.py"}


def test_annotated_arguments_are_followed():
    annotated = TREE | {
        "pipeline/learn/losses.py": "from pipeline.model.net import Net\n\n\ndef loss(net: Net):\n    return net(1)\n"
    }
    found = count.count(annotated, LAYOUT).update
    assert {path.rpartition("/")[2] for path in found} == {
        "learner.py", "losses.py", "net.py", "parts.py", "base.py", "shapes.py",
    }  # fmt: skip


def test_an_overriding_method_counts_in_the_same_folder_alone():
    text = "class A:\n    def go(self): pass\n\n\ndef run(a: A):\n    a.go()\n"
    below = "from pipeline.model.a import A\n\n\nclass B(A):\n    def go(self): pass\n"
    reached = CallGraph({"pipeline/model/a.py": text, "pipeline/model/b.py": below, "pipeline/x/c.py": below}).reached(
        "pipeline/model/a.py:run"
    )
    assert reached == {"pipeline/model/a.py:run", "pipeline/model/a.py:A.go", "pipeline/model/b.py:B.go"}


def test_long_and_branching_functions_are_named():
    body = "\n".join(f"    if x == {i} and y: pass" for i in range(6))
    long = "def long(x):\n" + "    x += 1\n" * 60
    found = count.count(TREE | {"stages/one.py": f"def many(x, y):\n{body}\n\n\n{long}"}, LAYOUT)
    assert found.complex == ["stages/one.py:1: many has complexity 13"]
    assert found.long == ["stages/one.py:10: long has 61 lines"]


def test_a_layout_that_is_out_of_date_is_refused(counts):
    assert counts.new_loss == ["params.yaml:1: loss_coef: 1", "pipeline/learn/losses.py:1: def loss(net):"]
    with pytest.raises(ValueError, match=r"params\.yaml does not contain 'loss_coef'"):
        count.count(TREE | {"params.yaml": ""}, LAYOUT)
    with pytest.raises(ValueError, match=r"not defined: pipeline/model/net\.py:Net\.plan"):
        count.count(TREE, Layout(LAYOUT.core, LAYOUT.rooms, LAYOUT.update, ("pipeline/model/net.py:Net.plan",)))
    with pytest.raises(ValueError, match="pipeline/run is in the layout, but not among the files"):
        count.count(TREE, Layout((*LAYOUT.core, "pipeline/run"), LAYOUT.rooms, LAYOUT.update, LAYOUT.plan))


@pytest.mark.skipif(shutil.which("git") is None, reason="needs Git")
def test_a_commit_and_the_folder_are_read_alike(tmp_path):
    for path, text in TREE.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "a"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    (tmp_path / "new.py").write_text("x = 1\n")
    assert count.read_version("HEAD", tmp_path) == TREE
    assert count.read_version(None, tmp_path) == TREE | {"new.py": "x = 1\n"}
    with pytest.raises(ValueError, match="git archive"):
        count.read_version("nothing", tmp_path)


@pytest.mark.skipif(not (count.ROOT / ".git").exists(), reason="not a Git checkout")
def test_the_layout_of_this_folder_is_up_to_date(capsys):
    count.main(["--list"])
    printed = capsys.readouterr().out
    assert "| files to open for one update (of them" in printed
    assert "conditionals:\n" in printed
