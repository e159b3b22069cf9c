"""EXPERIMENTS.md begins with an index of all its entries."""

import re
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "EXPERIMENTS.md").read_text()


def test_every_entry_has_one_line_in_the_index_and_every_link_arrives():
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"(?m)^## (.+)$", TEXT)]
    index = TEXT.partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| \[.+\]\(#(.+?)\) \| (.+) \| (.+) \|$", index)
    assert [anchor for anchor, _, _ in rows] == anchors
    assert len(set(anchors)) == len(anchors)


def test_a_module_that_is_named_is_here_or_its_commit_is():
    for entry in TEXT.split("\n## "):
        for name in set(re.findall(r"benchmarks[./](\w+)(?!\w|/)", entry)) - {"results"}:
            there = any(
                (Path(__file__).parents[2] / "benchmarks" / f"{name}{end}").exists()
                for end in (".py", ".yaml", "/__main__.py")
            )
            assert there or f"git show b7b0422:benchmarks/{name}.py" in entry, f"{name}: {entry.splitlines()[0]}"
