"""The comparison of systems: parameters on a par, runs that go on where they stopped, sums, claims, the table."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks import results, system_runs, systems
from benchmarks.interference import count_parameters
from benchmarks.system_runs import Run, RunFailed
from pipeline.files import write_json
from pipeline.language.embeddings import TaskEmbeddings
from pipeline.run.metrics import MetricsLog

SETUP = system_runs.read_setup()
TASKS = ["mw-reach", "pendulum-swingup", "pygame-pong"]


def shrunk(mlp_dim: int) -> dict[str, Any]:
    """The parameters of the reference with small widths."""
    found = system_runs.parameters(SETUP, "newt", quick=True)
    sizes = {"latent_dim": 16, "enc_dim": 16, "mlp_dim": mlp_dim, "num_q": 2, "num_bins": 5, "task_dim": 8}
    return system_runs.merge(found, {"model": sizes})


def a_run(system: str, seed: int, level: float) -> dict[str, Any]:
    scores = {task: [level, level + 0.1] for task in TASKS}
    return {
        "system": system, "seed": seed, "scores": {"policy": scores, "plan": scores}, "env_steps": 400, "seconds": 10.0,
        "curve": {"env_steps": [0, 200, 400], "score": [0.0, level / 2, level]}, "peak_memory_mb": 900,
        "parameters": 1000, "active_parameters": 990 if system == "newt" else 1050, "gradient_cosine": 0.1,
        "negative_pairs": 0.25, "dormant_units": 0.0, "commit": "abc",
    }  # fmt: skip


@pytest.fixture
def runs() -> list[dict[str, Any]]:
    return [
        a_run(system, seed, level + seed / 100)
        for system, level in (("newt", 0.8), ("newt-without-language", 0.3))
        for seed in (1, 2)
    ]


def test_a_system_is_the_defaults_its_preset_and_what_all_share(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text((system_runs.PRESETS / "quickstart.yaml").read_text())
    (tmp_path / "mine.yaml").write_text("learning: {weighting: harmony}\npretrain: {batch_size: 7, updates: 9}\n")
    setup = copy.deepcopy(SETUP) | {"systems": {"mine": {"preset": "mine", "learning": {"task_id_coef": 0.3}}}}
    found = system_runs.parameters(setup, "mine", quick=False, presets=tmp_path)
    assert found["learning"]["weighting"] == "harmony"
    assert found["learning"]["task_id_coef"] == 0.3
    assert found["pretrain"] == SETUP["common"]["pretrain"]
    assert found["publish"]["repo_id"] is None
    quick = system_runs.parameters(setup, "mine", quick=True, presets=tmp_path)
    assert quick["pretrain"]["updates"] == SETUP["quick"]["pretrain"]["updates"]
    (tmp_path / "mine.yaml").write_text("learning: {wieghting: harmony}\n")
    with pytest.raises(ValueError, match=r"system mine: learning: `wieghting` is not a parameter. Did you mean"):
        system_runs.parameters(setup, "mine", quick=False, presets=tmp_path)


def test_a_null_gives_way_to_a_section_and_back() -> None:
    base = {"model": {"experts": None, "mlp_dim": 8}}
    filled = system_runs.merge(base, {"model": {"experts": {"num": 4}}})
    assert filled == {"model": {"experts": {"num": 4}, "mlp_dim": 8}}
    assert system_runs.merge(filled, {"model": {"experts": None}}) == base
    assert base["model"]["experts"] is None


def test_the_comparison_has_enough_tasks_of_enough_domains() -> None:
    tasks = SETUP["common"]["tasks"]["train"]
    assert len(set(tasks)) >= 10
    assert len({spec.suite for spec in systems.registry.get(tasks)}) >= 3
    assert set(SETUP["systems"]) == {"newt", "newt-without-language", "scalezero", "mow", "m3po"}


def test_widths_are_found_for_the_wanted_active_parameters() -> None:
    wanted = count_parameters(system_runs.model_sizes(shrunk(24)))[1]
    fitted = system_runs.fit_width(shrunk(40), wanted + 50)  # the nearest is a little below
    assert fitted["model"]["mlp_dim"] == 24
    assert fitted["model"]["enc_dim"] == 16


def test_experts_keep_their_proportion_to_the_width() -> None:
    params = {"model": {"mlp_dim": 192, "experts": {"hidden": 32, "num": 8}, "history": None, "enc_dim": 96}}
    found = system_runs.with_width(params, 96)["model"]
    assert found == {"mlp_dim": 96, "experts": {"hidden": 16, "num": 8}, "history": None, "enc_dim": 96}
    assert system_runs.with_width(params, 24)["model"]["experts"]["hidden"] == 8
    assert params["model"]["mlp_dim"] == 192


def test_random_codes_tell_tasks_apart_and_nothing_else() -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 2, 384)).astype(np.float32)
    texts = tuple((f"{task} a", f"{task} b") for task in TASKS)
    found = system_runs.random_codes(
        TaskEmbeddings(vectors, tuple(TASKS), texts, "some-encoder", vectors[:, 0], tuple(TASKS))
    )
    assert found.vectors.shape == vectors.shape
    assert found.encoder != "some-encoder"
    assert np.array_equal(found.vectors[:, 0], found.vectors[:, 1])
    gram = found.vectors[:, 0] @ found.vectors[:, 0].T
    assert np.allclose(np.diag(gram), 1)
    assert np.abs(gram - np.eye(3)).max() < 0.2


def test_a_run_goes_on_where_it_stopped_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared, ran = tmp_path / "shared", []
    (shared / "datasets/demos").mkdir(parents=True)
    fails = ["stages.finetune"]

    def execute(module: str, folder: Path) -> None:
        ran.append(module)
        if module in fails:
            raise RunFailed("full disk")
        if module.startswith("stages."):
            write_json(folder / f"checkpoints/{module[7:]}/metrics/summary.json", {})
        else:
            write_json(folder / "measured.json", {"score": 0.5})

    monkeypatch.setattr(system_runs, "execute", execute)
    run = Run("newt", 1, system_runs.parameters(SETUP, "newt", quick=True), False, tmp_path)
    assert run.updates == 60 + 150
    assert run.updates_done == 0
    with pytest.raises(RunFailed):
        run.start(shared)
    assert run.updates_done == 60
    MetricsLog(run.folder / ".resume/finetune-0/metrics").write(1000, {"eval/score": 0.5})
    assert run.updates_done == 60 + 50
    fails.clear()
    assert run.start(shared) == {"system": "newt", "seed": 1, "score": 0.5}
    assert ran == ["stages.pretrain", "stages.finetune", "stages.finetune", "benchmarks.system_runs"]
    assert not run.folder.exists()
    assert run.updates_done == run.updates
    assert run.start(shared)["score"] == 0.5
    assert len(ran) == 4
    # Other parameters are another run.
    changed = system_runs.merge(run.params, {"learning": {"lr": 1e-3}})
    assert Run("newt", 1, changed, False, tmp_path).updates_done == 0
    assert Run("newt", 1, run.params, True, tmp_path).result != run.result


def test_a_stage_that_fails_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match=r"(?s)no_such_module in .* exit code 1. It said at last:.*No module named"):
        system_runs.execute("no_such_module", tmp_path)


@pytest.mark.parametrize(("score", "steps"), [(0.0, 0), (0.2, 100), (0.4, 200), (0.6, 300), (0.9, None)])
def test_steps_to_a_score_lie_between_evaluations(score: float, steps: float | None) -> None:
    assert systems.steps_to({"env_steps": [0, 200, 400], "score": [0.0, 0.4, 0.8]}, score) == pytest.approx(steps)


def test_the_sums_of_known_runs(runs: list[dict[str, Any]]) -> None:
    shown = systems.summarise(runs, TASKS)
    newt, without = shown["table"]
    assert newt["system"] == "newt"
    assert newt["score"] == pytest.approx((0.81 + 0.82) / 2 + 0.05)
    assert newt["low"] < newt["score"] < newt["high"]
    assert shown["best"] == pytest.approx(0.815)
    assert shown["curves"]["newt"]["score"] == pytest.approx([0, 0.4075, 0.815])
    assert newt["seeds_reached"] == 2
    assert 200 < newt["steps_to_80"] < 400
    assert without["steps_to_80"] is None
    text = systems.markdown(shown)
    assert "not by 2 of 2" in text
    assert "| mw-reach | 0.86 | 0.36 |" in text
    assert len({line.count("|") for line in text.splitlines()[:4]}) == 1


def test_claims_count_what_was_run(runs: list[dict[str, Any]]) -> None:
    found = systems.claims(systems.summarise(runs, TASKS), runs, 5, "newt")
    assert found["runs_with_every_task"] == {"value": 0.8, "target": 1.0, "better": "above", "holds": False}
    assert found["active_parameters_apart"]["value"] == pytest.approx(1050 / 990 - 1, abs=1e-4)
    assert found["active_parameters_apart"]["holds"]
    assert found["language_minus_no_language"] == {"value": 0.5, "target": 0.0, "better": "above", "holds": True}
    assert found["domains_compared"]["value"] == 3
    assert not found["systems_compared"]["holds"]


def test_the_page_and_its_figure_are_drawn_from_the_written_results(
    runs: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    shown = systems.summarise([{**run, "system": f"<{run['system']}>"} for run in runs], TASKS)
    content = {
        "command": "python -m benchmarks.systems", "seconds": 240.0, "machine": {"cpu": "Some CPU"},
        "whole_protocol": False, "claims": systems.claims(shown, runs, 5, "<newt>"), **shown,
    }  # fmt: skip
    write_json(tmp_path / "systems.json", content)
    systems.main(["--page"])
    svg = ElementTree.parse(tmp_path / "systems.svg").getroot()
    words = " ".join(text.strip() for text in svg.itertext() if text.strip())
    assert svg.attrib["aria-label"] == "Score of each system against environment steps"
    assert "<newt>" in words
    assert "<newt-without-language>" in words
    assert "var(" not in (tmp_path / "systems.svg").read_text()
    page = (tmp_path / "systems.md").read_text()
    assert (
        "`python -m benchmarks.systems`, a part of the whole comparison, in 4 minutes of one core on Some CPU" in page
    )
    assert systems.markdown(shown) in page
    assert "| domains compared | 3 | at least 3 | yes |" in page
    assert "| language minus no language | - | at least 0 | no |" in page
    write_json(tmp_path / "systems.json", content | {"whole_protocol": True})
    systems.main(["--page"])
    assert "a part of" not in (tmp_path / "systems.md").read_text()
