"""A preset changes what it says and nothing else, or nothing at all."""

import re
import shutil
from pathlib import Path

import pytest

from pipeline import config
from pipeline.presets import Change, apply_preset, list_presets
from pipeline.tasks import registry

ROOT = Path(__file__).parent.parent
TINY = ROOT / "tests/tiny.yaml"


@pytest.fixture
def params(tmp_path) -> Path:
    return Path(shutil.copy(TINY, tmp_path / "params.yaml"))


def write(folder: Path, text: str) -> Path:
    (folder / "presets").mkdir()
    (folder / "presets/big.yaml").write_text(text)
    return folder / "presets"


def test_only_the_named_values_change_and_keep_their_spelling(tmp_path, params):
    before = params.read_text()
    presets = write(tmp_path, "learning: {lr: 1e-3}\nadapt:\n  pretrain:\n    updates: 77\nseed: 5  # five\n")
    changes = apply_preset("big", presets, params)
    assert sorted(changes) == [
        Change("adapt.pretrain.updates", 10, 77),
        Change("learning.lr", 3e-4, 1e-3),
        Change("seed", 3, 5),
    ]
    expected = before.replace("seed: 3", "seed: 5").replace("lr: 3e-4", "lr: 1e-3", 1)
    assert params.read_text() == expected.replace("updates: 10", "updates: 77")
    assert config.load(config.Learning, params).lr == 1e-3


def test_comments_around_lists_stay(tmp_path, params):
    text = params.read_text()
    start, end = text.index("tasks:\n"), text.index("demos:\n")
    tasks = """\
tasks:  # the run's tasks
  train:  # together
    - mw-reach
    - mw-push

  # Two that share a body.
  pairs:
    - [mw-reach, mw-push]  # trailing
  weights: {}
  held_out: [mw-drawer-close]   # alone
  # Your own files.
  folder: my_tasks

"""
    params.write_text(text[:start] + tasks + text[end:])
    presets = write(tmp_path, "tasks:\n  train: [a, b, c]\n  held_out:\n  - x\n  - y\n  pairs: [[a, c]]\n")
    apply_preset("big", presets, params)
    expected = tasks.replace("- mw-reach\n    - mw-push", "- a\n    - b\n    - c")
    expected = expected.replace("- [mw-reach, mw-push]", "- [a, c]").replace("[mw-drawer-close]", "[x, y]")
    assert params.read_text() == text[:start] + expected + text[end:]


def test_null_is_written_over_and_restored(tmp_path, params):
    before = params.read_text()
    presets = write(tmp_path, 'publish: {repo_id: "me/model"}\n')
    (presets / "back.yaml").write_text("publish:\n  repo_id:\n")
    apply_preset("big", presets, params)
    assert config.load(config.Publish, params).repo_id == "me/model"
    assert apply_preset("back", presets, params) == [Change("publish.repo_id", "me/model", None)]
    assert params.read_text() == before


def test_a_key_with_nothing_behind_it_takes_a_value(tmp_path, params):
    params.write_text(params.read_text().replace("tag: null", "tag:"))
    apply_preset("big", write(tmp_path, "publish: {tag: v1}\n"), params)
    assert config.load(config.Publish, params).tag == "v1"


def test_an_empty_list_and_back(tmp_path, params):
    presets = write(tmp_path, "tasks: {pairs: []}\n")
    apply_preset("big", presets, params)
    assert config.load(config.Tasks, params).pairs == ()


def test_a_mapping_of_free_names_is_a_value(tmp_path, params):
    before = params.read_text()
    presets = write(tmp_path, "tasks:\n  weights:\n    mw-reach: 2.5\n    mw-pick-place: 3\n")
    (presets / "back.yaml").write_text("tasks: {weights: {}}\n")
    weights = {"mw-reach": 2.5, "mw-pick-place": 3}
    assert apply_preset("big", presets, params) == [Change("tasks.weights", {}, weights)]
    assert "weights: {mw-reach: 2.5, mw-pick-place: 3}\n" in params.read_text()
    assert config.load(config.Tasks, params).weights == weights
    apply_preset("back", presets, params)
    assert params.read_text() == before


def test_applying_twice_changes_nothing_and_does_not_write(tmp_path, params):
    presets = write(tmp_path, "seed: 9\n")
    apply_preset("big", presets, params)
    written = params.stat().st_mtime_ns, params.stat().st_ino
    assert apply_preset("big", presets, params) == []
    assert (params.stat().st_mtime_ns, params.stat().st_ino) == written


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("learning: {lrr: 1}", "`learning.lrr` is not in `learning` of the parameters. Did you mean `lr`"),
        ("modle: {latent_dim: 64}", "`modle` is not in the parameters. Did you mean `model`"),
        ("adapt: {pretrain: {update: 1}}", "`adapt.pretrain.update` is not .* Did you mean `updates`"),
        ("model: 3", "`model` must be a section"),
        ("seed: {a: 1}", "`seed` must be a section"),
        ("model: {latent_dim: 30}", "with preset `big`: model: .*30 is not a multiple of model.simnorm_dim 8"),
        ("learning: {lr: -1}", "`lr` is -1: Input should be greater than 0"),
        ("model: [1, 2", "big.yaml is not valid YAML"),
        ("- a\n- b", "must hold named sections"),
        ("", "must hold named sections"),
    ],
)
def test_a_wrong_preset_is_refused_and_nothing_is_written(tmp_path, params, preset, message):
    before = params.read_text()
    with pytest.raises(ValueError, match=message):
        apply_preset("big", write(tmp_path, preset), params)
    assert params.read_text() == before


def test_an_unknown_preset_names_its_near_matches(tmp_path, params):
    presets = write(tmp_path, "# Fifty tasks.\nseed: 1\n")
    with pytest.raises(ValueError, match=re.escape("no preset `bigg`")) as error:
        apply_preset("bigg", presets, params)
    assert "Did you mean `big`?" in str(error.value)
    assert list_presets(presets) == {"big": "Fifty tasks."}


def test_the_presets_of_the_project_fit_its_parameters_and_tasks(tmp_path):
    presets = list_presets(ROOT / "presets")
    assert {"mt50", "dmc"} <= set(presets)
    for name, description in presets.items():
        params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
        apply_preset(name, ROOT / "presets", params)
        assert description, f"presets/{name}.yaml should begin with a comment that says what it is"
        tasks, model = config.load(config.Tasks, params), config.load(config.Model, params)
        for spec in registry.get(tasks.train + tasks.held_out):
            assert spec.obs_dim <= model.obs_dim
            assert spec.action_dim <= model.action_dim
