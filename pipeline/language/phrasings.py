"""How people might say each task of the catalogue: 30 sentences a task or more, by kind, without the body's sentence.

Kinds to learn from: `short` (2 to 4 words), `long` (14 to 30), `colloquial`, `nouns` (other words for things and
deeds), `question` (of Meta-World's tasks thirteen, which may say what the deed is good for), `wrong` (with a harmless
wrong detail, such as a colour). Whole kinds are kept for evaluation: `indirect` (the wish is meant, not said) and
`typos` (with two to four typing errors). The head (head.py) is trained on the former, and never on the latter.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from ruamel.yaml import YAML

TRAINED = ("short", "long", "colloquial", "nouns", "question", "wrong")
HELD_BACK = ("indirect", "typos")

Phrasings = dict[str, list[str]]  # by kind


@cache
def load_phrasings() -> dict[str, Phrasings]:
    """Read pipeline/texts/phrasings/: for each task of the catalogue its sentences by kind."""
    found: dict[str, Phrasings] = {}
    for path in sorted(files("pipeline").joinpath("texts/phrasings").iterdir(), key=lambda one: one.name):
        found |= YAML(typ="safe").load(path.read_text(encoding="utf-8"))["tasks"]
    return found


@cache
def load_nothing() -> dict[str, list[str]]:
    """Read pipeline/texts/nothing.yaml: sentences that mean no task, `trained` to learn from and `held_back`."""
    return YAML(typ="safe").load(files("pipeline").joinpath("texts/nothing.yaml").read_text(encoding="utf-8"))
