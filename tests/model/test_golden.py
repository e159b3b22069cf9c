"""Our numbers against the original's: single calls, losses, gradients, three whole updates, a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks import golden

DATA = Path(__file__).parents[1] / "data"
FIXTURE, CHECKPOINT = DATA / "newt_tiny.safetensors", DATA / "newt_tiny_checkpoint.pt"


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return golden.compare(golden.Fixture(FIXTURE, CHECKPOINT))


def test_every_number_of_the_original_is_met(errors: dict[str, float]) -> None:
    assert {key: value for key, value in errors.items() if value > golden.TOLERANCE} == {}
    for part in ("out.", "pretrain.grad.", "online.grad.", "policy.", "after3.", "plan.out."):
        assert any(key.startswith(part) for key in errors), part


def test_command_prints_the_largest_error_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(str(FIXTURE), str(CHECKPOINT)) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split()[1]) for line in lines]
    assert lines[-1].startswith("largest")
    assert values[-1] == max(values[:-1])


def rewrite(path: Path, drop: str | None = None, change: str | None = None) -> str:
    with safe_open(FIXTURE, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys() if key != drop}  # noqa: SIM118
        metadata = file.metadata()
    if change:
        tensors[change] = tensors[change] + 1e-3
    save_file(tensors, path, metadata)
    return str(path)


def test_another_number_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(rewrite(tmp_path / "f", change="after3._pi.2.weight"), str(CHECKPOINT)) == 1
    flagged = [line for line in capsys.readouterr().out.splitlines() if "ABOVE" in line]
    assert [line.split()[0] for line in flagged] == ["after3._pi.2.weight"]


@pytest.mark.parametrize("key", ["in.obs", "plan.in.noise", "online.grad_norm", "plan.out.action"])
def test_a_missing_key_is_named(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert golden.main(rewrite(tmp_path / "f", drop=key), str(CHECKPOINT)) == 2
    assert key in capsys.readouterr().err


@pytest.mark.parametrize("key", ["rho", "num_iterations"])
def test_a_missing_size_is_named(key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with safe_open(FIXTURE, "pt") as file:
        meta = json.loads(file.metadata()["meta"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del meta[key]
    save_file(tensors, tmp_path / "f", {"meta": json.dumps(meta)})
    assert golden.main(str(tmp_path / "f"), str(CHECKPOINT)) == 2
    assert f"`meta` lacks {key}" in capsys.readouterr().err


def test_error_counts_another_shape_and_nan_as_infinite() -> None:
    assert golden.error(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert golden.error(torch.tensor([float("nan")]), torch.ones(1)) == float("inf")
