"""Wrong parameters are refused by name, with what was meant; right ones arrive as what they are."""

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from pipeline import config

ROOT = Path(__file__).parent.parent


@pytest.fixture
def params(tmp_path) -> Path:
    return Path(shutil.copy(ROOT / "tests/tiny.yaml", tmp_path / "params.yaml"))


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("path", ["params.yaml", "tests/tiny.yaml"])
def test_every_section_of_ours_is_valid(path):
    for section in config.SECTIONS.values():
        loaded = config.load(section, ROOT / path)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(loaded, dataclasses.fields(section)[0].name, None)
    assert f"\nseed: {config.load_seed(ROOT / path)}\n" in (ROOT / path).read_text()
    assert set(config.read_params(ROOT / path)) == {*config.SECTIONS, "seed"}


# Options whose default is not null: what a checkpoint or a file without them means.
OPTIONS = {
    "weighting": "even",
    "weighting_lr_scale": 10.0,
    "task_id_coef": 0.0,
    "cooldown": 0.0,
    "teacher": "off",
    "env_timeout": 60.0,
    "graphs": "auto",
    "execute": "elite",
    "value_target": "td",
    "return_lambda": 0.98,
    "relabel_every": 250,
    "imitated": "executed",
    "control": False,
    "stagger": False,
    "demos_in_replay": False,
    "lerobot_episodes": 0,
    "lerobot_video_size": 0,
    "words_episodes": 0,
}


def test_no_parameter_has_a_default_but_options_that_are_off():
    for section in config.SECTIONS.values():
        for field in dataclasses.fields(section):
            known = (dataclasses.MISSING, OPTIONS.get(field.name))  # null where it is not among the options
            assert field.default in known, f"{section.__name__}.{field.name}"
            assert field.default_factory is dataclasses.MISSING, f"{section.__name__}.{field.name}"


SCALING = (
    "{parts: [dynamics], adapters: 4, rank: 64, alpha: 64.0, target: 0.9, targets: {mw-reach: 0.5}, slack: 0.1, "
    "first_stage_updates: 100, stage_updates: 50}"
)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("target: 0.9", "target: 1.5", "`scaling.target` is 1.5: Input should be less than or equal to 1"),
        ("mw-reach: 0.5", "mw-reach: -1", "`scaling.targets.mw-reach` is -1"),
        ("[dynamics]", "[dynamic]", "`scaling.parts.0` is 'dynamic': Input should be 'encoder', 'dynamics'"),
        ("[dynamics]", "[]", "scaling.parts is empty"),
        ("[dynamics]", "[q, q]", "names a part twice"),
        ("rank: 64", "rank: 0", "`scaling.rank` is 0"),
        ("slack", "slak", "`scaling.slak` is not a parameter. Did you mean `slack`"),
    ],
)
def test_a_wrong_value_of_scaling_is_named(params, old, new, message):
    start = params.read_text().index("\nfinetune:")
    text = params.read_text()
    section = text[start:].replace("  eval_episodes: 2\n", f"  eval_episodes: 2\n  scaling: {SCALING}\n", 1)
    params.write_text(text[:start] + section)
    found = config.load(config.Finetune, params).scaling
    assert found is not None
    assert (found.target_of("mw-reach"), found.target_of("mw-push")) == (0.5, 0.9)
    params.write_text(text[:start] + section.replace(SCALING, SCALING.replace(old, new)))
    with pytest.raises(ValueError, match=re.escape(message)):
        config.load(config.Finetune, params)


def test_adapting_does_not_grow(params):
    text = params.read_text()
    at = text.index("adapt:")
    section = text[at:].replace(
        "    eval_episodes: 2\n\npublish", f"    eval_episodes: 2\n    scaling: {SCALING}\n\npublish"
    )
    params.write_text(text[:at] + section)
    with pytest.raises(ValueError, match=r"adapt\.finetune\.scaling must be null"):
        config.load(config.Adapt, params)


def test_numbers_in_scientific_notation_are_numbers(params):
    replace(params, "lr: 3e-4", "lr: 3e-5")
    assert config.load(config.Learning, params).lr == 3e-5


@pytest.mark.parametrize(
    ("section", "old", "new", "messages"),
    [
        (config.Learning, "  lr: 3e-4\n", "", ["learning: `lr` is missing"]),
        (config.Learning, "  lr: 3e-4", "  leraning_rate: 1\n  lr: 3e-4", ["`leraning_rate` is not a parameter"]),
        (config.Learning, "encoder_lr_scale:", "encoder_lr_scal:", ["Did you mean `encoder_lr_scale`", "is missing"]),
        (config.Learning, "lr: 3e-4", "lr: fast", ["`lr` is 'fast'", "number"]),
        (config.Learning, "tau: 0.01", "tau: 1.5", ["`tau` is 1.5", "less than or equal to 1"]),
        (config.Pretrain, "batch_size: 16", "batch_size: 0", ["`batch_size` is 0", "greater than or equal to 1"]),
        (config.Pretrain, "batch_size: 16", "batch_size: 16.5", ["`batch_size` is 16.5", "integer"]),
        (config.Runtime, "device: cpu", "device: tpu", ["`device` is 'tpu'", "'auto', 'cpu' or 'cuda'"]),
        (config.Runtime, "  matmul: auto", "  compile: false\n  matmul: auto", ["`compile` is not a parameter"]),
        (config.Adapt, "    warmup_updates: 0\n", "", ["adapt: `pretrain.warmup_updates` is missing"]),
        (config.Adapt, "    utd:", "    udt:", ["`finetune.udt` is not a parameter. Did you mean `utd`"]),
        (config.Adapt, "[encoder, dynamics", "[encoder, dynamic", ["`parts.1` is 'dynamic'"]),
        (
            config.Adapt,
            "warmup_updates: 0\n    seeding",
            "warmup_updates: 3\n    seeding",
            ["must be 0 while adapt.pretrain"],
        ),
        (config.Model, "latent_dim: 16", "latent_dim: 12", ["latent_dim 12 is not a multiple of model.simnorm_dim 8"]),
        (config.Planner, "num_elites: 4", "num_elites: 99", ["num_elites exceeds planner.num_samples"]),
        (config.Planner, "num_policy_samples: 4", "num_policy_samples: 16", ["must be below planner.num_samples"]),
        (config.Tasks, "held_out: [mw-drawer-close]", "held_out: [mw-reach]", ["listed twice", "mw-reach"]),
        (config.Tasks, "weights: {}", "weights: {mw-rech: 2}", ["'mw-rech'", "not in tasks.train", "`mw-reach`"]),
        (config.Tasks, "weights: {}", "weights: {mw-reach: -1}", ["`weights.mw-reach` is -1", "greater than or equal"]),
        (
            config.Tasks,
            "weights: {}",
            "weights: {mw-reach: 0, mw-pick-place: 0, mw-drawer-open: 0}",
            ["every training task to 0"],
        ),
        (config.Finetune, "batch_size: 16", "batch_size: 15", ["15 x demo_fraction 0.5 is 7.5 slices"]),
        (config.Pretrain, "cooldown: 0.25", "cooldown: 1.5", ["`cooldown` is 1.5", "less than or equal to 1"]),
        (config.Tasks, "[[mw-reach, mw-pick-place]]", "[[mw-reach, mw-push]]", ["'mw-push'", "not in tasks.train"]),
    ],
)
def test_a_wrong_value_is_named_with_file_and_section(params, section, old, new, messages):
    # In the section's own text, since keys such as `batch_size` stand in several.
    text = params.read_text()
    name = next(key for key, value in config.SECTIONS.items() if value is section)
    start = text.index(f"\n{name}:")
    assert old in text[start:]
    params.write_text(text[:start] + text[start:].replace(old, new, 1))
    with pytest.raises(ValueError, match="^.*params.yaml: ") as error:
        config.load(section, params)
    for message in messages:
        assert message in str(error.value)


def test_every_problem_of_a_section_is_named_at_once(params):
    replace(params, "num_q: 2", "num_q: 1")
    replace(params, "num_bins: 21", "num_bin: 21")
    with pytest.raises(ValueError, match="params.yaml: model: ") as error:
        config.load(config.Model, params)
    assert len(str(error.value).splitlines()) == 3
    assert "`num_q` is 1" in str(error.value)


def test_an_unknown_section_names_its_near_match(params):
    replace(params, "learning:", "lerning:")
    with pytest.raises(ValueError, match=r"unknown section `lerning`. Did you mean `learning`"):
        config.load(config.Model, params)


def test_a_missing_section_says_what_it_holds(params):
    text = params.read_text()
    params.write_text(text[: text.index("publish:")])
    with pytest.raises(
        ValueError, match=r"section `publish` is missing. It holds: repo_id, demos_repo_id, private, tag"
    ):
        config.load(config.Publish, params)


@pytest.mark.parametrize("content", ["publish: 3\n", "publish:\n", "publish: [a]\n"])
def test_a_section_without_names_is_refused(params, content):
    params.write_text(content)
    with pytest.raises(ValueError, match=r"publish: expected named values \(repo_id, demos_repo_id, private, tag, "):
        config.load(config.Publish, params)


@pytest.mark.parametrize("seed", ["-1", "true", "1.5", "one", "null"])
def test_a_wrong_seed_is_refused(params, seed):
    replace(params, "seed: 3", f"seed: {seed}")
    with pytest.raises(ValueError, match="`seed` must be a whole number of at least 0"):
        config.load_seed(params)


@pytest.mark.parametrize("content", [b"a: [1,", b"a: 1\na: 2\n", b"\xff\xfe\x00", b"\ttab: 1\n"])
def test_bad_yaml_names_the_file(params, content):
    params.write_bytes(content)
    with pytest.raises(ValueError, match=r"params\.yaml is not valid YAML"):
        config.load(config.Model, params)


@pytest.mark.parametrize("content", ["", "- a\n", "just text\n"])
def test_yaml_without_sections_is_refused(params, content):
    params.write_text(content)
    with pytest.raises(ValueError, match="must hold named sections: tasks, teach, demos"):
        config.load(config.Model, params)


def test_a_missing_file_says_where_to_run(tmp_path):
    with pytest.raises(ValueError, match="does not exist. Run from the folder that holds it"):
        config.load(config.Model, tmp_path / "params.yaml")


def test_near_matches():
    assert config.near("latent", ["latent_dim", "lr"]) == " Did you mean `latent_dim`?"
    assert config.near("xyz", ["latent_dim", "lr"]) == ""
