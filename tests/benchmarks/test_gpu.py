"""What is to be measured on a GPU runs through: no time there is spent on a typing error."""

from __future__ import annotations

import pytest

from benchmarks import gpu, results
from pipeline.model.graphs import Graphs


def test_the_dry_run_walks_through_all_of_it_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[int] = []
    run = Graphs.run
    monkeypatch.setattr(Graphs, "run", lambda self, *given: ran.append(1) or run(self, *given))
    monkeypatch.setattr(gpu, "_NUM_TASKS", 3)
    monkeypatch.setattr(results, "write", lambda *given, **more: pytest.fail("a dry run wrote a result"))
    assert gpu.main(["--dry"]) == 0
    shown = capsys.readouterr().out
    for figure in ("plan, graphs: ms", "update, as it is: ms", "plan, plainest: ms", "loop: environment steps",
                   "profile of the update", "decoded scalar"):  # fmt: skip
        assert figure in shown
    assert "left out" not in shown
    assert ran


def test_without_a_gpu_nothing_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "--dry" in capsys.readouterr().err
