"""Where the files lie that a project begins with: dvc.yaml, params.yaml, presets.

In a checkout they lie at its root; a wheel carries copies beside the code.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent
_IN_WHEEL = _PACKAGE / "project"  # put there by the build, see pyproject.toml
ROOT = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent
STAGES = _PACKAGE.parent / "stages"  # their files
