"""What is built in the benchmark of many tasks where a task's files are missing."""

from __future__ import annotations

from benchmarks.tasks import stand_ins
from pipeline.tasks import availability, registry


def test_another_task_of_the_domain_stands_in_and_a_domain_without_any_is_named(monkeypatch):
    wanted = registry.get(["ms-pick-cube", "ms-pick-apple", "ms-push-cube", "walker-run", "rd-push-red"])
    reasons = {"ms-pick-apple": "fetch the fruit", "rd-push-red": "not installed"}
    monkeypatch.setattr(availability, "unavailable", lambda specs: reasons)
    built, absent = stand_ins(wanted)
    assert absent == ["robodesk"]
    assert list(built) == ["ms-pick-cube", "ms-pick-apple", "ms-push-cube", "walker-run"]
    assert built["ms-pick-apple"].name in ("ms-pick-cube", "ms-push-cube")
    assert all(built[name].name == name for name in built if name != "ms-pick-apple")
