"""Claims and the file they are written to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pipeline.files import write_json
from pipeline.train.runtime import commit, machine

RESULTS = Path(__file__).parent / "results"


def claim(value: float | None, target: float, better: Literal["above", "below"]) -> dict[str, Any]:
    """Return a promised figure beside what was measured; `value` None (not measured) does not hold."""
    holds = value is not None and (value >= target if better == "above" else value <= target)
    return {"value": value, "target": target, "better": better, "holds": holds}


def write(name: str, command: str, seconds: float, claims: Mapping[str, dict[str, Any]], **more: Any) -> Path:
    """Write results/<name>.json with command, commit, machine and claims, print the claims, return the path."""
    path = RESULTS / f"{name}.json"
    write_json(
        path,
        {
            "command": command,
            "commit": commit(),
            "machine": machine(),
            "seconds": round(seconds, 1),
            "claims": dict(claims),
            **more,
        },
    )
    for key, figure in claims.items():
        verdict = "holds" if figure["holds"] else "DOES NOT HOLD"
        print(f"{key}: {figure['value']} ({figure['better']} {figure['target']}) {verdict}")
    return path
