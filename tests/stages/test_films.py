"""Films of the stage evaluate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest

from pipeline import config
from pipeline.run.ranks import Ranks
from pipeline.tasks.rendering import RenderingUnavailable
from pipeline.tasks.spec import TaskSpec
from stages.evaluate import Arena
from tests.tiny_agent import SPECS


class Painter:
    """Draws every task but one."""

    def record(
        self, actor: Any, spec: TaskSpec, seed: int, settings: config.Evaluate
    ) -> tuple[list[np.ndarray], float]:
        if spec.name == "walk":
            raise RenderingUnavailable("walk cannot draw itself")
        return [np.zeros((2, 2, 3), np.uint8)], 0.5


def test_a_task_that_cannot_be_drawn_leaves_the_films_of_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    settings, runtime = (config.load(part, "tests/tiny.yaml") for part in (config.Evaluate, config.Runtime))
    settings = replace(settings, video_size=8)
    arena = Arena(SPECS, (6, 3), settings, runtime, 0, Ranks(), cast("Any", Painter()))
    assert [film.task for film in arena.film(cast("Any", None))] == ["reach", "push"]
    assert "evaluate: no videos of walk: walk cannot draw itself" in capsys.readouterr().err
