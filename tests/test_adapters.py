"""Low-rank adapters: no change at the start, exact saving, several on one base, merging, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import config
from pipeline.adapters import Adapters
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import PARTS, TaskContext, WorldModel

SIZES = config.Model(
    obs_dim=6, action_dim=3, task_dim=8, latent_dim=16, enc_dim=12, num_enc_layers=2, mlp_dim=16, num_q=3,
    num_bins=11, bin_min=-5.0, bin_max=5.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
)  # fmt: skip
ALL = tuple(PARTS)


@pytest.fixture
def model() -> WorldModel:
    return make_model(0)


def make_model(seed: int) -> WorldModel:
    """A model whose every weight matters: the heads that start at zero are filled."""
    torch.manual_seed(seed)
    model = WorldModel(SIZES)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def disturb(model: WorldModel, seed: int) -> None:
    """Move every trainable parameter, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def context_of(model: WorldModel, task: Tensor) -> TaskContext:
    """The context of four tasks, whose texts have these embeddings (4, E)."""
    table = TaskTable(("a", "b", "c", "d"), task.unsqueeze(1), torch.ones(4, 3), torch.full((4,), 0.9))
    return model.context(table, torch.arange(4))


@torch.no_grad()
def outputs(model: WorldModel) -> list[Tensor]:
    """What every part of the model says about fixed inputs."""
    draw = torch.Generator().manual_seed(1)
    obs, task = torch.randn(4, 6, generator=draw), torch.randn(4, 8, generator=draw)
    action = torch.rand(4, 3, generator=draw) * 2 - 1
    ctx = context_of(model, task)
    z = model.encode(obs, ctx)
    policy = model.policy(z, ctx)
    return [z, model.next(z, action, ctx)[0], model.reward(z, action, ctx), policy.mean, model.q(z, action, ctx)]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_new_adapter_changes_nothing(model: WorldModel) -> None:
    before = outputs(model)
    Adapters(model).create("door", ALL, rank=4, alpha=8.0)
    assert same(outputs(model), before)


@pytest.mark.parametrize(("part", "changed"), [("reward", [2]), ("policy", [3]), ("q", [4]), ("dynamics", [1])])
def test_an_adapter_changes_only_its_parts(model: WorldModel, part: str, changed: list[int]) -> None:
    before = outputs(model)
    Adapters(model).create("door", [part], rank=4, alpha=8.0)
    disturb(model, 2)
    after = outputs(model)
    assert [i for i in range(5) if not torch.equal(before[i], after[i])] == changed


def test_only_the_adapter_is_trainable(model: WorldModel) -> None:
    Adapters(model).create("door", ALL, rank=4, alpha=8.0)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".lora_" in name and not name.startswith("target_q_heads") for name in trainable)
    layers = sum(name.endswith("base_layer.weight") and "target" not in name for name, _ in model.named_parameters())
    assert len(trainable) == 2 * layers


def test_gradients_reach_every_adapter_tensor_also_in_split_first_layers(model: WorldModel) -> None:
    Adapters(model).create("door", ALL, rank=4, alpha=8.0)
    disturb(model, 2)
    ctx = context_of(model, torch.randn(4, 8))
    z = model.encode(torch.randn(4, 6), ctx)
    policy = model.policy(z, ctx)
    action = policy.action
    loss = model.next(z, action, ctx)[0].square().sum() + model.reward(z, action, ctx).square().sum()
    (loss + model.q(z, action, ctx).square().sum()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_the_target_q_follows_the_online_adapter(model: WorldModel) -> None:
    Adapters(model).create("door", ["q"], rank=4, alpha=8.0)
    shapes = [(n, p.shape) for n, p in model.q_heads.named_parameters()]
    assert [(n, p.shape) for n, p in model.target_q_heads.named_parameters()] == shapes
    assert not any(parameter.requires_grad for parameter in model.target_q_heads.parameters())


def test_with_the_adapter_off_the_base_is_untouched_to_the_bit(model: WorldModel) -> None:
    before, weights = outputs(model), {k: v.clone() for k, v in model.state_dict().items() if "target" not in k}
    adapters = Adapters(model)
    adapters.create("door", ALL, rank=4, alpha=8.0)
    disturb(model, 2)
    assert not same(outputs(model), before)
    adapters.activate(None)
    assert same(outputs(model), before)
    found = model.state_dict()
    for name, weight in weights.items():
        wrapped = name.replace("linear.", "linear.base_layer.")
        assert torch.equal(found[wrapped if wrapped in found else name], weight)


def test_saved_and_loaded_bit_for_bit(model: WorldModel, tmp_path: Path) -> None:
    adapters = Adapters(model)
    adapters.create("door", ALL, rank=4, alpha=8.0)
    disturb(model, 2)
    adapters.save(tmp_path, "door")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    other = make_model(0)
    Adapters(other).load(tmp_path, "renamed")
    assert same(outputs(other), outputs(model))
    assert not any(parameter.requires_grad for parameter in other.parameters())


def test_the_file_is_peft_s_own(model: WorldModel, tmp_path: Path) -> None:
    adapters = Adapters(model)
    adapters.create("door", ALL, rank=4, alpha=8.0)
    disturb(model, 2)
    adapters.save(tmp_path, "door")
    other = make_model(0)
    PeftModel.from_pretrained(other, str(tmp_path))
    assert same(outputs(other), outputs(model))


def test_the_same_adapter_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        model = make_model(0)
        adapters = Adapters(model)
        torch.manual_seed(3)
        adapters.create("door", ALL, rank=4, alpha=8.0)
        adapters.save(folder, "door")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["base_model_name_or_path"] == "eft"


def test_several_adapters_on_one_base(model: WorldModel, tmp_path: Path) -> None:
    base = outputs(model)
    expected = {}
    for seed, name in enumerate(["door", "linear"]):  # a name that is also a module's
        fresh = make_model(0)
        adapters = Adapters(fresh)
        adapters.create(name, ALL if name == "door" else ["policy", "q"], rank=2 + seed, alpha=8.0)
        disturb(fresh, seed)
        (tmp_path / name).mkdir()
        adapters.save(tmp_path / name, name)
        expected[name] = outputs(fresh)
    adapters = Adapters(model)
    for name in expected:
        adapters.load(tmp_path / name, name)
    assert adapters.names == ("door", "linear")
    for name in ("door", "linear", None, "door", None, "linear"):
        adapters.activate(name)
        assert adapters.active == name
        assert same(outputs(model), base if name is None else expected[name])
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_another_adapter_acts_for_a_while_and_training_goes_on_after_it(model: WorldModel, tmp_path: Path) -> None:
    base, adapters = outputs(model), Adapters(model)
    adapters.create("door", ["policy"], rank=2, alpha=8.0)
    disturb(model, 1)
    adapters.save(tmp_path, "door")
    door = outputs(model)
    adapters.create("drawer", ["policy", "q"], rank=2, alpha=8.0)
    disturb(model, 2)
    drawer = outputs(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    target = {name: tensor.clone() for name, tensor in model.target_q_heads.state_dict().items()}
    for name, expected in (("door", door), (None, base), ("drawer", drawer)):
        with adapters.acting(name):
            assert same(outputs(model), expected)
        assert (adapters.active, adapters.trained) == ("drawer", "drawer")
        assert same(outputs(model), drawer)
        assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
        # The target Q heads follow slowly while training: switching does not set them to the present ones.
        assert all(torch.equal(tensor, target[name]) for name, tensor in model.target_q_heads.state_dict().items())
    adapters.load(tmp_path, "window")
    assert (adapters.active, adapters.trained) == ("drawer", "drawer")
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    adapters.activate("door")
    with adapters.acting(None):
        assert same(outputs(model), base)
    assert adapters.active is None  # nothing is trained, so nothing is put back


@pytest.mark.parametrize(("rank", "alpha"), [(0, 8.0), (-1, 8.0), (10**9, 8.0), (2.5, 8.0), (4, 0.0), (4, math.nan)])
def test_an_unusable_size_is_refused_and_changes_nothing(model: WorldModel, rank: float, alpha: float) -> None:
    before, adapters = outputs(model), Adapters(model)
    with pytest.raises(ValueError, match="a rank of 1 to 4096 and an alpha above 0"):
        adapters.create("door", ALL, rank=rank, alpha=alpha)  # type: ignore[arg-type]
    assert adapters.names == ()
    assert all(parameter.requires_grad for name, parameter in model.named_parameters() if "target_q" not in name)
    assert same(outputs(model), before)


def test_training_goes_on_from_a_loaded_adapter(model: WorldModel, tmp_path: Path) -> None:
    adapters = Adapters(model)
    adapters.create("door", ["policy", "q"], rank=4, alpha=8.0)
    disturb(model, 2)
    adapters.save(tmp_path, "door")
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    other = make_model(0)
    Adapters(other).load(tmp_path, "door", trainable=True)
    assert [name for name, parameter in other.named_parameters() if parameter.requires_grad] == trained
    target = dict(other.target_q_heads.named_parameters())
    for name, parameter in other.q_heads.named_parameters():
        assert torch.equal(target[name], parameter)


def test_merged_equals_unmerged(model: WorldModel) -> None:
    adapters = Adapters(model)
    adapters.create("door", ALL, rank=4, alpha=8.0)
    disturb(model, 2)
    before = outputs(model)
    adapters.merge("door")
    for merged, unmerged in zip(outputs(model), before, strict=True):
        torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=1e-5)
    assert list(model.state_dict()) == list(make_model(0).state_dict())
    assert adapters.names == ()
    Adapters(model).create("next", ALL, rank=4, alpha=8.0)


def test_a_model_is_not_wrapped_twice(model: WorldModel) -> None:
    Adapters(model).create("door", ALL, rank=4, alpha=8.0)
    with pytest.raises(ValueError, match="already carries adapters"):
        Adapters(model)


@pytest.mark.parametrize("name", ["", "a.b", "a/b", "door"])
def test_unusable_names_are_refused(model: WorldModel, name: str) -> None:
    adapters = Adapters(model)
    adapters.create("door", ALL, rank=4, alpha=8.0)
    with pytest.raises(ValueError, match="adapter"):
        adapters.create(name, ALL, rank=4, alpha=8.0)
    assert adapters.names == ("door",)


def test_unknown_parts_and_adapters_are_refused(model: WorldModel) -> None:
    adapters = Adapters(model)
    for parts in ([], ["polcy"]):
        with pytest.raises(ValueError, match="expected some of encoder, dynamics, reward, policy, q"):
            adapters.create("door", parts, rank=4, alpha=8.0)
    with pytest.raises(ValueError, match="no adapter called 'door'; there are: none"):
        adapters.activate("door")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = make_model(0)
    adapters = Adapters(model)
    adapters.create("door", ["policy"], rank=4, alpha=8.0)
    adapters.save(tmp_path, "door")
    return tmp_path


@pytest.mark.parametrize(
    "change",
    [
        {"use_dora": True},
        {"bias": "all"},
        {"lora_dropout": 0.5},
        {"modules_to_save": ["encoder"]},
        {"peft_type": "IA3"},
        {"r": 10**9},
        {"target_modules": "(.*a)+b"},
        {"target_modules": r"(target_q_heads)\..*linear"},
        {"r": None},
    ],
)
def test_foreign_configurations_are_refused(model: WorldModel, saved: Path, change: dict) -> None:
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        Adapters(model).load(saved, "door")


@pytest.mark.parametrize("damage", ["missing", "shape", "absent", "bytes"])
def test_weights_that_do_not_fit_are_refused_and_leave_the_model_whole(
    model: WorldModel, saved: Path, damage: str
) -> None:
    path = saved / "adapter_model.safetensors"
    tensors = load_file(path)
    first = next(iter(tensors))
    if damage == "missing":
        tensors.pop(first)
    if damage == "shape":
        tensors[first] = torch.zeros(2, 2)
    if damage == "bytes":
        path.write_bytes(b"\xff" * 64)
    elif damage == "absent":
        path.rename(saved / "adapter_model.bin")
    else:
        save_file(tensors, path)
    before, adapters = outputs(model), Adapters(model)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    with pytest.raises(ValueError, match="adapter"):
        adapters.load(saved, "door")
    assert same(outputs(model), before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trainable
    assert adapters.names == ()
    Adapters(model)
