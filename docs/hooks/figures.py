"""Tables of what the default run came to, from the files that the run itself wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SCORES = Path("checkpoints/evaluate/metrics/scores.json")
_PHASES = {"pretrain": "pretrained on demonstrations alone", "finetune": "finetuned online"}


def as_markdown() -> str:
    """Return scores, the adapted tasks, and the pairs of instructions, each with the commit that made them."""
    scores, summary = _read(SCORES), _read(SCORES.with_name("summary.json"))
    machine, tasks = summary["machine"], len(scores["models"]["finetune"]["policy"])
    head = [
        f"Mean score over {tasks} training tasks, {summary['episodes']} episodes each, the same starts for all, with",
        f"intervals by bootstrap; commit {summary['commit'][:7]}, {machine['cores']} cores of an {machine['cpu']},",
        "shared with other work:",
        "",
        "| | policy alone | with planning on every task |",
        "|---|---|---|",
    ]
    rows = [
        f"| {words} | {_interval(scores['mean'][phase]['policy'])} | {_interval(scores['mean'][phase]['plan'])} |"
        for phase, words in _PHASES.items()
    ]
    return "\n".join([*head, *rows, "", *_adapted(), "", *_pairs(scores["pairs"])])


def _adapted() -> list[str]:
    rows = [
        f"| {one['task']} | {_interval(one['zero_shot'])} | {_interval(one['adapted'])} | {one['seconds']:.0f} |"
        for one in map(_read, sorted((ROOT / "checkpoints/adapt").glob("*/metrics/summary.json")))
    ]
    return ["| task not met in training | before | adapted | seconds |", "|---|---|---|---|", *rows]


def _pairs(pairs: list[dict[str, Any]]) -> list[str]:
    found = ["Two tasks of one body and start, told apart by the instruction alone; each row was told one of them:", ""]
    for pair in pairs:
        if pair["mode"] == "policy":
            first, second = pair["tasks"]
            found += [f"| told | scored as {first} | scored as {second} |", "|---|---|---|"]
            found += [
                f"| {name} | {row[0]:.2f} | {row[1]:.2f} |"
                for name, row in zip(pair["tasks"], pair["scores"], strict=True)
            ]
            found += [""]
    return found


def _interval(score: dict[str, float]) -> str:
    return f"{score['score']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def _read(path: Path) -> Any:
    return json.loads((ROOT / path).read_text(encoding="utf-8"))
