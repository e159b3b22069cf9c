"""Reading YAML that somebody wrote."""

from __future__ import annotations

import re
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

_DEEPEST, _MOST_VALUES = 50, 200_000  # of YAML that somebody wrote


def parse_yaml(text: str, where: str) -> Any:
    """Return YAML as plain values, read by ruamel as DVC does (PyYAML takes `3e-4` for text).

    Nested without end, or small and yet of millions of values by its aliases, it is refused before it takes long.

    Raises:
        ValueError: it is not valid YAML, or such; `where` is named.
    """
    depth = 0
    for mark in re.findall(r"[\[\]{}]", text):
        depth = depth + 1 if mark in "[{" else max(depth - 1, 0)
        if depth > _DEEPEST:
            raise ValueError(f"{where} is not valid YAML: brackets are nested more than {_DEEPEST} deep")
    try:
        values = YAML(typ="safe").load(text)
    except (YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not valid YAML: {error}") from None
    waiting, count = [values], 0
    while waiting:
        one = waiting.pop()
        waiting += (
            [*one.keys(), *one.values()] if isinstance(one, dict) else one if isinstance(one, (list, set)) else []
        )
        if (count := count + 1) > _MOST_VALUES:
            raise ValueError(f"{where} is not valid YAML: it holds more than {_MOST_VALUES:,} values, by its aliases")
    return values
