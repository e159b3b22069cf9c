"""A preset changes what it says and nothing else, or nothing at all."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from pipeline import config
from pipeline.model.world_model import WorldModel
from pipeline.presets import Change, apply_presets, list_presets
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
    changes = apply_presets(["big"], presets, params)
    assert sorted(changes) == [
        Change("adapt.pretrain.updates", 10, 77),
        Change("learning.lr", 3e-4, 1e-3),
        Change("seed", 3, 5),
    ]
    expected = before.replace("seed: 3", "seed: 5").replace("lr: 3e-4", "lr: 1e-3", 1)
    assert params.read_text() == expected.replace(" updates: 10", " updates: 77")
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
    apply_presets(["big"], presets, params)
    expected = tasks.replace("- mw-reach\n    - mw-push", "- a\n    - b\n    - c")
    expected = expected.replace("- [mw-reach, mw-push]", "- [a, c]").replace("[mw-drawer-close]", "[x, y]")
    assert params.read_text() == text[:start] + expected + text[end:]


def test_null_is_written_over_and_restored(tmp_path, params):
    before = params.read_text()
    presets = write(tmp_path, 'publish: {repo_id: "me/model"}\n')
    (presets / "back.yaml").write_text("publish:\n  repo_id:\n")
    apply_presets(["big"], presets, params)
    assert config.load(config.Publish, params).repo_id == "me/model"
    assert apply_presets(["back"], presets, params) == [Change("publish.repo_id", "me/model", None)]
    assert params.read_text() == before


def test_a_key_with_nothing_behind_it_takes_a_value(tmp_path, params):
    params.write_text(params.read_text().replace("tag: null", "tag:"))
    apply_presets(["big"], write(tmp_path, "publish: {tag: v1}\n"), params)
    assert config.load(config.Publish, params).tag == "v1"


def test_an_empty_list_and_back(tmp_path, params):
    presets = write(tmp_path, "tasks: {pairs: []}\n")
    apply_presets(["big"], presets, params)
    assert config.load(config.Tasks, params).pairs == ()


def test_a_mapping_of_free_names_is_a_value(tmp_path, params):
    before = params.read_text()
    presets = write(tmp_path, "tasks:\n  weights:\n    mw-reach: 2.5\n    mw-pick-place: 3\n")
    (presets / "back.yaml").write_text("tasks: {weights: {}}\n")
    weights = {"mw-reach": 2.5, "mw-pick-place": 3}
    assert apply_presets(["big"], presets, params) == [Change("tasks.weights", {}, weights)]
    assert "weights: {mw-reach: 2.5, mw-pick-place: 3}\n" in params.read_text()
    assert config.load(config.Tasks, params).weights == weights
    apply_presets(["back"], presets, params)
    assert params.read_text() == before


def test_applying_twice_changes_nothing_and_does_not_write(tmp_path, params):
    presets = write(tmp_path, "seed: 9\n")
    apply_presets(["big"], presets, params)
    written = params.stat().st_mtime_ns, params.stat().st_ino
    assert apply_presets(["big"], presets, params) == []
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
        apply_presets(["big"], write(tmp_path, preset), params)
    assert params.read_text() == before


def test_an_unknown_preset_names_its_near_matches(tmp_path, params):
    presets = write(tmp_path, "# Fifty tasks.\nseed: 1\n")
    with pytest.raises(ValueError, match=re.escape("no preset `bigg`")) as error:
        apply_presets(["bigg"], presets, params)
    assert "Did you mean `big`?" in str(error.value)
    assert list_presets(presets) == {"big": "Fifty tasks."}


def test_tasks_are_taken_out_of_every_list(tmp_path, params):
    params.write_text(params.read_text().replace("weights: {}", "weights: {mw-reach: 2, mw-drawer-open: 3}"))
    before = params.read_text()
    seen = []

    def leave_out(tasks: config.Tasks) -> set[str]:
        seen.append(tasks.train)
        return {"mw-reach", "mw-drawer-close"}

    presets = write(tmp_path, "tasks: {train: [mw-reach, mw-pick-place, mw-drawer-open, mw-push]}\n")
    changes = apply_presets(["big"], presets, params, leave_out)
    tasks = config.load(config.Tasks, params)
    assert seen == [("mw-reach", "mw-pick-place", "mw-drawer-open", "mw-push")]
    assert tasks.train == ("mw-pick-place", "mw-drawer-open", "mw-push")
    assert (tasks.held_out, tasks.pairs, tasks.weights) == ((), (), {"mw-drawer-open": 3})
    assert {change.key for change in changes} == {f"tasks.{key}" for key in ("train", "held_out", "pairs", "weights")}
    assert apply_presets([], presets, params, lambda tasks: ()) == []
    params.write_text(before)
    with pytest.raises(ValueError, match=r"none of the tasks in tasks\.train can run"):
        apply_presets([], presets, params, lambda tasks: tasks.train)
    assert params.read_text() == before


PRESETS = ROOT / "presets"
SIZES = ("size-s", "size-b", "size-l", "size-xl")


def test_a_later_preset_wins_and_all_is_written_or_nothing(tmp_path, params):
    before = params.read_text()
    presets = write(tmp_path, "seed: 9\nlearning: {lr: 1e-3}\n")
    (presets / "more.yaml").write_text("seed: 4\n")
    (presets / "back.yaml").write_text("seed: 3\n")
    (presets / "wrong.yaml").write_text("seed: 5\nmodel: {num_q: 1}\n")
    with pytest.raises(ValueError, match="with preset `big` and `wrong`: model: `num_q` is 1"):
        apply_presets(["big", "wrong"], presets, params)
    assert params.read_text() == before
    changes = apply_presets(["big", "more"], presets, params)
    assert sorted(changes) == [Change("learning.lr", 3e-4, 1e-3), Change("seed", 3, 4)]
    params.write_text(before)
    assert apply_presets(["more", "back"], presets, params) == []
    assert params.read_text() == before


@pytest.mark.slow
def test_the_presets_of_the_project_fit_its_parameters_and_tasks(tmp_path):
    presets = list_presets(PRESETS)
    assert {"newt", "newt-cpu", "quickstart", "mt50", "dmc", *SIZES} <= set(presets)
    for name, description in presets.items():
        params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
        apply_presets([name], PRESETS, params)  # which reads every section anew
        assert description, f"presets/{name}.yaml should begin with a comment that says what it is"
        tasks, model = config.load(config.Tasks, params), config.load(config.Model, params)
        for spec in registry.get(tasks.train + tasks.held_out):
            assert spec.obs_dim <= model.obs_dim
            assert spec.action_dim <= model.action_dim


def test_quickstart_brings_the_default_parameters_back(tmp_path):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    apply_presets(["mt50", "newt", "size-xl", "quickstart"], PRESETS, params)
    ours, default = config.read_params(PRESETS / "quickstart.yaml"), config.read_params(ROOT / "params.yaml")
    assert ours == default, "copy what was changed in params.yaml into presets/quickstart.yaml"
    assert config.read_params(params) == default


@pytest.mark.parametrize(("size", "millions"), list(zip(SIZES, (2.14, 7.26, 20.4, 81.6), strict=True)))
def test_sizes_have_the_published_numbers_of_parameters(tmp_path, size, millions):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    apply_presets(["newt", size], PRESETS, params)
    with torch.device("meta"):
        model = WorldModel(config.load(config.Model, params))
    online = sum(value.numel() for name, value in model.named_parameters() if not name.startswith("target_"))
    assert online / 1e6 == pytest.approx(millions, rel=0.005)


def test_newt_has_the_published_numbers(tmp_path):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    apply_presets(["quickstart", "newt"], PRESETS, params)
    read = {name: config.load(section, params) for name, section in config.SECTIONS.items()}
    published = {
        "model": {
            "obs_dim": 128, "action_dim": 16, "task_dim": 512, "latent_dim": 512, "enc_dim": 1024, "mlp_dim": 1024,
            "num_enc_layers": 3, "num_q": 5, "num_bins": 101, "bin_min": -10, "bin_max": 10, "simnorm_dim": 8,
            "log_std_min": -10, "log_std_max": 2, "termination": False,
        },
        "planner": {
            "horizon": 3, "iterations": 6, "num_samples": 512, "num_policy_samples": 24, "num_elites": 64,
            "min_std": 0.05, "max_std": 2, "temperature": 0.5,
        },
        "learning": {
            "lr": 3e-4, "encoder_lr_scale": 0.3, "grad_clip_norm": 20, "tau": 0.01, "rho": 0.5,
            "consistency_coef": 20, "reward_coef": 0.1, "value_coef": 0.1, "bc_coef": 1, "online_bc_coef": 0,
            "prior_coef": 1, "entropy_coef": 1e-4, "normalize_obs": False, "discount_min": 0.95, "discount_max": 0.995,
        },
        "pretrain": {"updates": 200_000, "batch_size": 1024, "warmup_updates": 5000},
        "finetune": {
            "env_steps": 100_000_000, "utd": 0.075, "batch_size": 1024, "demo_fraction": 0.5, "imitate": "all",
            "lr_scale": 1, "envs_per_task": 1, "warmup_updates": 0, "seeding_episodes": 5,
            "constraint": "schedule", "constraint_steps": 2_000_000, "constraint_decay": 10_000_000,
        },
    }  # fmt: skip
    for section, values in published.items():
        assert {name: getattr(read[section], name) for name in values} == values
    assert read["language"].encoder == "openai/clip-vit-base-patch32"


EXPERTS = """model:
  experts:
    parts: [dynamics,
            q]
    num: 4
    top_k: 1  # the best
    hidden: 16
    shared: true
    router: latent
    temperature: 1.0
    balance_coef: 1e-2
"""


@pytest.mark.parametrize("ending", ["", "  # none", "\n  # about what follows\n"])
def test_a_section_comes_in_the_place_of_null_and_goes_again(tmp_path, ending):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    params.write_text(params.read_text().replace("  experts: null", f"  experts: null{ending}"))
    before = params.read_text()
    presets = write(tmp_path, EXPERTS)
    (presets / "more.yaml").write_text("model: {experts: {num: 8}}\n")
    (presets / "back.yaml").write_text("model: {experts: null}\n")
    ((key, old, new),) = apply_presets(["big"], presets, params)
    assert (key, old, new["num"], new["balance_coef"]) == ("model.experts", None, 4, 0.01)
    assert "    num: 4\n    top_k: 1\n    hidden: 16\n" in params.read_text()
    assert "    balance_coef: 1e-2\n" in params.read_text().replace(ending, "")
    found = config.load(config.Model, params).experts
    assert found is not None
    assert found.parts == ("dynamics", "q")
    assert apply_presets(["more"], presets, params) == [Change("model.experts.num", 4, 8)]
    ((key, old, new),) = apply_presets(["back"], presets, params)
    assert (key, old["num"], new) == ("model.experts", 8, None)
    assert params.read_text() == before
    assert apply_presets(["big", "more", "back"], presets, params) == []
    ((_, _, new),) = apply_presets(["big", "more"], presets, params)
    assert new["num"] == 8


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("model: null", "`model` must be a section"),
        ("publish: {tag: {a: 1}}", "`publish.tag` must be a section where"),
        ("model: {experts: 3}", "`experts` is 3"),
        ("model: {experts: {num: 4}}", "`experts.parts` is missing"),
        ("model: {experts: {nmu: 4}}", "`experts.nmu` is not a parameter. Did you mean `num`"),
    ],
)
def test_a_section_that_is_none_is_refused(tmp_path, preset, message):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    with pytest.raises(ValueError, match=message):
        apply_presets(["big"], write(tmp_path, preset), params)


def test_quickstart_takes_the_sections_of_other_presets_away(tmp_path):
    params = Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))
    before = params.read_text()
    apply_presets(["scalezero"], PRESETS, params)
    experts = config.load(config.Model, params).experts
    assert experts is not None
    assert 3 * (experts.top_k + experts.shared) * experts.hidden == config.load(config.Model, params).mlp_dim
    apply_presets(["quickstart"], PRESETS, params)
    assert params.read_text() == before
