"""Claims and the file they are written to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.files import write_json
from pipeline.run.provenance import commit, machine

RESULTS = Path(__file__).parent / "results"


def claim(value: float | None, target: float, better: Literal["above", "below"]) -> dict[str, Any]:
    """Return a promised figure beside what was measured; `value` None (not measured) does not hold."""
    holds = value is not None and (value >= target if better == "above" else value <= target)
    return {"value": value, "target": target, "better": better, "holds": holds}


def write(name: str, command: str, seconds: float, claims: Mapping[str, dict[str, Any]], **more: Any) -> Path:
    """Write results/<name>.json with command, commit, machine and claims, print the claims, return the path.

    What other commands added to it (`add`) stays.
    """
    path = RESULTS / f"{name}.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts = before.get("parts", {})
    kept = {key: value for key, value in before.get("claims", {}).items() if key.rpartition(".")[0] in parts}
    content = _measured(command, seconds) | {"claims": {**claims, **kept}, **more}
    write_json(path, content | ({"parts": parts} if parts else {}))
    _say(claims)
    return path


def add(name: str, part: str, command: str, seconds: float, claims: Mapping[str, dict[str, Any]], **more: Any) -> Path:
    """Put the claims `<part>.<claim>` of another command into results/<name>.json, beside what is there.

    Its own command, commit, machine and figures stand under `parts`.
    """
    path = RESULTS / f"{name}.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"claims": {}}
    named = {f"{part}.{key}": figure for key, figure in claims.items()}
    kept = {key: value for key, value in content["claims"].items() if key.rpartition(".")[0] != part}
    content["claims"] = kept | named
    content["parts"] = content.get("parts", {}) | {part: _measured(command, seconds) | more}
    write_json(path, content)
    _say(named)
    return path


def _measured(command: str, seconds: float) -> dict[str, Any]:
    return {"command": command, "commit": commit(), "machine": machine(), "seconds": round(seconds, 1)}


def _say(claims: Mapping[str, dict[str, Any]]) -> None:
    for key, figure in claims.items():
        verdict = "holds" if figure["holds"] else "DOES NOT HOLD"
        print(f"{key}: {figure['value']} ({figure['better']} {figure['target']}) {verdict}")
