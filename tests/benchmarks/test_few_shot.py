"""The benchmark of few-shot adaptation: its areas, what it claims, and cells that are learned at once."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import pytest

from benchmarks import few_shot
from benchmarks.few_shot import Cell, Folders, area, claims, learn_all, way_there
from benchmarks.few_shot_figure import draw
from pipeline import config
from pipeline.adapt import Settings
from pipeline.files import write_json
from pipeline.tasks import registry

SETTINGS = few_shot.read_settings(100)


def test_an_area_begins_with_what_demonstrations_gave_and_ends_with_what_was_kept():
    points = [{"env_steps": 0, "score": 0.0}, {"env_steps": 0, "score": 0.5}, {"env_steps": 50, "score": 0.2}]
    curve = way_there({"curve": points, "scores": [1.0, 1.0]})
    assert area(curve, 100) == pytest.approx(0.875, abs=1e-3)
    assert area([(0, 1.0)], 100) == 1
    assert area([(50, 1.0)], 100) == pytest.approx(0.75, abs=1e-3)


def test_the_figure_shows_every_way_and_task_that_was_learned():
    row = {"score": 0.5, "low": 0.4, "high": 0.6, "curves": [[(0, 0.2), (50, 0.5)]]}
    rows = [{"task": "mw-reach", "way": way, "demos": demos, **row} for way in ("all", "cloning") for demos in (5, 20)]
    svg = draw([*rows, {"task": "own-task", "way": "all", "demos": 3, **row}], ["mw-push", "mw-reach"], 100)
    texts = ElementTree.fromstring(svg).itertext()
    assert {
        "mw-reach",
        "own-task",
        "3",
        "all weights",
        "cloning from scratch",
        "score on the way, 5 demonstrations",
    } <= set(texts)
    assert "mw-push" not in svg
    assert "adapter" not in svg


def result(scores: list[float], **more) -> dict:
    return {"scores": scores, "demos": 5, "seconds": 10.0, "wall_seconds": 20.0, "seed": 1, **more}


def adapted(scores: list[float], after: float = 0.9) -> dict:
    told = {"parameters": 10, "base_parameters": 1000, "unchanged": True, "trained_tasks": {"a": [after]}}
    return result(scores, **told)


def test_claims_are_of_five_demonstrations_of_meta_world():
    found = {
        Cell("mw-reach-wall", "adapter", 5, 1): adapted([1.0, 0.8]),
        Cell("mw-reach-wall", "scratch", 5, 1): result([0.5, 0.3]),
        Cell("mw-reach-wall", "scratch", 20, 1): result([1.0, 1.0]) | {"demos": 20},
        Cell("og-point-var1", "adapter", 5, 1): adapted([0.0, 0.0]),
    }
    made = claims(found, {1: {"a": [0.9]}})
    assert made["metaworld_5_demos_success"]["value"] == 0.9
    assert made["metaworld_5_demos_above_scratch"]["value"] == 0.5
    assert made["training_tasks_unchanged"]["holds"]
    found[Cell("mw-push", "adapter", 5, 1)] = adapted([1.0], after=0.8)
    assert not claims(found, {1: {"a": [0.9]}})["training_tasks_unchanged"]["holds"]


def test_cells_that_are_done_are_not_learned_again(tmp_path, monkeypatch):
    specs = {spec.name: spec for spec in registry.get(["mw-reach-wall"])}
    cells = [Cell("mw-reach-wall", "adapter", 5, seed) for seed in (1, 2)]
    learned = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(few_shot, "run", lambda cell, *_: learned.append(cell))
    folders = Folders(tmp_path / "shared", {"adapter": "abc"})
    write_json(folders.result(cells[0]), {})
    learn_all(cells, specs, tmp_path / "base", SETTINGS, folders, jobs=1)
    assert learned == cells[1:]


def test_the_longest_adaptation_is_timed_by_itself_once(tmp_path, monkeypatch):
    cells = [Cell("mw-reach-wall", "adapter", 5, seed) for seed in (1, 2)]
    found = {cell: adapted([0.5]) | {"seconds": 10.0 * cell.seed} for cell in cells}
    found[Cell("mw-reach-wall", "adapter", 20, 1)] = adapted([0.5]) | {"seconds": 99.0, "demos": 20}
    again, timed = {"scores": [0.5], "adapt_seconds": 7.0}, []

    def run(cell, spec, base, settings, folders):
        timed.append(cell)
        write_json(folders.result(cell), again)

    tasks = dataclasses.replace(config.load(config.Tasks), folder=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, fake in {"run": run, "collect_demos": lambda *_: None, "embed_texts": lambda *_: None}.items():
        monkeypatch.setattr(few_shot, name, fake)
    folders = Folders(tmp_path / "shared", {"adapter": "abc"})
    once = [found, tasks, tmp_path / "base", SETTINGS, folders]
    few_shot.time_longest(*once)
    few_shot.time_longest(*once)
    assert timed == [cells[1]]
    assert claims(found, {1: {"a": [0.9]}})["longest_adaptation_seconds"]["value"] == 7
    del found[cells[1]]["alone_seconds"]
    found[cells[1]]["scores"] = [0.6]
    with pytest.raises(RuntimeError, match=r"scored \[0.5\] by itself and \[0.6\]"):
        few_shot.time_longest(*once)


@pytest.mark.slow
def test_a_cell_that_fails_in_its_own_process_is_an_error_and_its_log_stays(tmp_path):
    specs = {spec.name: spec for spec in registry.get(["mw-reach-wall"])}
    cells = [Cell("mw-reach-wall", "adapter", 0, seed) for seed in (1, 2)]
    folders = Folders(tmp_path / "shared", {"adapter": str(tmp_path / "cells")})
    with pytest.raises((FileNotFoundError, ValueError), match="base"):
        learn_all(cells, specs, tmp_path / "base", SETTINGS, folders, jobs=2)
    assert (tmp_path / "cells" / "mw-reach-wall-adapter-0-1.log").exists()


def test_cells_are_remembered_as_long_as_what_they_depend_on_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(few_shot, "CELLS", tmp_path / "few_shot.json")
    base = tmp_path / "base"
    base.mkdir()
    (base / "weights").write_text("a")

    def shapes(settings: Settings = SETTINGS) -> dict[str, str]:
        return {way: few_shot.shape(way, settings, base) for way in few_shot.WAYS}

    assert few_shot.recall(shapes()) == {}
    cells = [Cell("mw-reach-wall", way, 5, 1) for way in ("adapter", "scratch")]
    few_shot.remember({cell: result([1.0]) | cell._asdict() for cell in cells}, shapes())
    assert set(few_shot.recall(shapes())) == set(cells)
    assert few_shot.recall(shapes())[cells[0]]["scores"] == [1.0]

    def changed(**values) -> dict[str, str]:
        return shapes(dataclasses.replace(SETTINGS, adapt=dataclasses.replace(SETTINGS.adapt, **values)))

    assert set(few_shot.recall(changed(rank=5))) == {cells[1]}  # nothing else has an adapter
    longer = dataclasses.replace(SETTINGS.adapt.pretrain, updates=1)
    assert few_shot.recall(changed(pretrain=longer)) == {}
    (base / "weights").write_text("b")
    assert few_shot.recall(shapes()) == {}
