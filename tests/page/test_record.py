"""Keeping episodes as demonstrations."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipeline.data.demos import read_episodes, write_episodes
from pipeline.data.episode import Episode
from pipeline.page import record


def episode(number: int) -> Episode:
    obs, one = np.full((3, 2), number, np.float32), np.zeros((2, 1), np.float32)
    return Episode("swing", obs, one, one, one[:, 0], False, False, 0.0, 0.0, number, "hand")


def test_pages_that_keep_episodes_at_once_lose_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(path: Path, episodes: list[Episode]) -> None:
        time.sleep(0.05)
        write_episodes(path, episodes)

    monkeypatch.setattr(record, "write_episodes", slowly)
    with ThreadPoolExecutor(4) as pool:
        kept = list(pool.map(lambda number: record.keep(tmp_path, episode(number)), range(4)))
    assert sorted(count for _, count in kept) == [1, 2, 3, 4]
    assert {one.seed for one in read_episodes(kept[0][0], "the test")} == {0, 1, 2, 3}
