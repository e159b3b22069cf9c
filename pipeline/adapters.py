"""Low-rank adapters (LoRA, by PEFT) on a world model: put in, switch, save, load, merge.

An adapter that is named after its task acts on that task alone (`Actor`).

The model stays the object it was: PEFT exchanges its linear layers in place. With every adapter off, it computes
exactly what it did before.

Source: Hu et al., LoRA (arXiv 2106.09685).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.model.world_model import PARTS, WorldModel

if TYPE_CHECKING:  # importing PEFT takes seconds, and most processes never adapt anything
    from peft import LoraConfig, LoraModel, PeftModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TARGET = "target_q_heads."
_PREFIX = "of-"  # of names within PEFT, which keeps matrices as attributes by name: a task may be called `forward`
_LINEAR_LAYERS = r")\..*linear"
_MAX_RANK = 4096
# What a configuration says beside how the adapter acts.
_DESCRIPTIVE = {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"}


class Adapters:
    """The adapters on one world model. At most one acts at a time.

    Args:
        model: a world model without adapters.

    Attributes:
        active: the adapter that acts; None for the bare base.
        trained: the adapter whose weights get gradients; None for none.

    Raises:
        ValueError: the model already carries adapters; use the `Adapters` that put them there.
    """

    def __init__(self, model: WorldModel):
        if any(hasattr(module, "lora_A") for module in model.modules()):
            raise ValueError(
                "this model already carries adapters. Add another to the same `Adapters`, or merge the first, "
                "or load the model anew."
            )
        self.model = model
        self.active: str | None = None
        self.trained: str | None = None
        self._peft: PeftModel | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters that were created or loaded."""
        return tuple(name.removeprefix(_PREFIX) for name in self._peft.peft_config) if self._peft else ()

    def create(self, name: str, parts: Sequence[str], rank: int, alpha: float, copy: int = 0) -> None:
        """Put in a new adapter that changes nothing yet, make it act, and make it all that is trained.

        Args:
            name: what to call it.
            parts: which networks it may change, keys of `world_model.PARTS`.
            rank: of the change of each weight matrix.
            alpha: the change is scaled by alpha / rank.
            copy: of parts that exist in several copies, the one that is changed.

        Raises:
            ValueError: the name is taken or unusable, a part is unknown, or the rank or alpha is no number to use.
        """
        unknown = [part for part in parts if part not in PARTS]
        if unknown or not parts:
            raise ValueError(f"adapt.parts is {list(parts)}: expected some of {', '.join(PARTS)}.")
        if not (rank in range(1, _MAX_RANK + 1) and 0 < alpha < math.inf):
            raise ValueError(f"an adapter has a rank of 1 to {_MAX_RANK} and an alpha above 0, not {rank} and {alpha}.")
        modules = _target_modules([_path(self.model, part, copy) for part in PARTS if part in parts])
        config = _lora_config(rank, alpha, modules)
        self._put_in(name, config)
        self.activate(name, trainable=True)

    def load(self, folder: str | Path, name: str, trainable: bool = False) -> None:
        """Load an adapter that `save` wrote, and make it act unless another is being trained.

        Args:
            folder: holds adapter_config.json and adapter_model.safetensors.
            name: what to call it.
            trainable: go on training it, in the place of any other.

        Raises:
            ValueError: it is no LoRA adapter of this kind, or it does not fit the model.
        """
        folder = Path(folder)
        config = _read_config(folder, self.model)
        tensors = _read_tensors(folder)
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._put_in(name, config)
        mine = self._tensors(name)
        expected = {key: tuple(tensor.shape) for key, tensor in mine.items()}
        found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if expected != found:
            self._remove(name)
            for parameter in learned:
                parameter.requires_grad_(True)
            wrong = sorted(set(expected.items()) ^ set(found.items()))[0]
            raise ValueError(
                f"the adapter in {folder} does not fit this model: {len(found)} tensors came, {len(expected)} were "
                f"expected, and {wrong[0]} differs. It belongs to a model of other sizes."
            )
        for key, tensor in mine.items():
            tensor.data.copy_(tensors[key])
        if trainable or self.trained is None:
            self.activate(name, trainable)
        else:
            self._switch(self.trained)

    def save(self, folder: str | Path, name: str) -> None:
        """Write adapter_config.json and adapter_model.safetensors into an existing folder, in PEFT's own form."""
        tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in self._tensors(name).items()}
        self._require(name).peft_config[_PREFIX + name].save_pretrained(str(folder), inference_mode=True)
        save_file(tensors, Path(folder) / WEIGHTS, metadata={"format": "pt"})

    def activate(self, name: str | None, trainable: bool = False) -> None:
        """Let one adapter act, or none.

        Args:
            name: the adapter; None turns all of them off.
            trainable: its weights get gradients; nothing else ever does.
        """
        if name is not None:
            self._require(name)
        self.trained = name if trainable else None
        self._switch(name)
        if trainable:
            self.model.sync_target()  # the target Q heads follow the adapted ones

    @contextmanager
    def acting(self, name: str | None) -> Iterator[None]:
        """Let one adapter act, or none, at least within; then the one in training acts again, if there is one."""
        if name != self.active:
            self._switch(name)
        try:
            yield
        finally:
            if self.trained is not None and self.active != self.trained:
                self._switch(self.trained)

    def merge(self, name: str) -> None:
        """Work an adapter into the weights for good, and drop all adapters."""
        self.activate(name)
        self._tuner.merge_and_unload(adapter_names=[_PREFIX + name])
        self._peft, self.active = None, None

    def _switch(self, name: str | None) -> None:
        """Let one adapter act, or none; what is trained stays what it was and gets gradients while it acts."""
        if self._peft is None:
            return
        if name is None:
            self._tuner.disable_adapter_layers()
            self.model.requires_grad_(False)
        else:
            self._tuner.enable_adapter_layers()
            self._peft.set_adapter(_PREFIX + name, inference_mode=name != self.trained)
            self.model.target_q_heads.requires_grad_(False)
        self.active = name

    def _put_in(self, name: str, config: LoraConfig) -> None:
        if name in self.names:
            raise ValueError(f"there is already an adapter called {name!r}. Give this one another name.")
        if not name or "." in name or "/" in name:
            raise ValueError(f"{name!r} cannot name an adapter: use letters, digits and hyphens, e.g. the task's name.")
        self.model.name_or_path = "eft"  # pyright: ignore[reportArgumentType]  # PEFT asks for it
        if self._peft is None:
            from peft import get_peft_model

            self._peft = get_peft_model(self.model, config, adapter_name=_PREFIX + name)
        else:
            self._peft.add_adapter(_PREFIX + name, config)

    def _remove(self, name: str) -> None:
        """Take out an adapter that was put in and never acted."""
        peft = self._require(name)
        if len(self.names) == 1:
            self._tuner.unload()
            self._peft = None
        else:
            peft.delete_adapter(_PREFIX + name)
            self._switch(self.active)

    @property
    def _tuner(self) -> LoraModel:
        return cast("LoraModel", self._peft.base_model if self._peft else None)

    def _require(self, name: str) -> PeftModel:
        if self._peft is None or name not in self.names:
            raise ValueError(f"there is no adapter called {name!r}; there are: {', '.join(self.names) or 'none'}.")
        return self._peft

    def _tensors(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors under the names they have in its file."""
        suffix = f".{_PREFIX}{name}.weight"
        return {
            key.removesuffix(suffix) + ".weight": tensor
            for key, tensor in self._require(name).named_parameters()
            if ".lora_" in key and key.endswith(suffix) and _TARGET not in key
        }


def _path(model: WorldModel, part: str, copy: int) -> str:
    """The module of a part, as a regular expression; of a part that exists in several copies, one of them."""
    if _copies(model, part) == 1:
        return PARTS[part]
    return rf"{PARTS[part]}\.\d+\.{copy}" if part == "q" else rf"{PARTS[part]}\.{copy}"


def _copies(model: WorldModel, part: str) -> int:
    """How many copies of a part there are; a network that has several says so by its attribute `copies`."""
    module = model.q_heads[0] if part == "q" else model.get_submodule(PARTS[part])
    return getattr(module, "copies", 1)


def _read_config(folder: Path, model: WorldModel) -> LoraConfig:
    """Read rank, alpha and target modules, and refuse whatever else would change how the adapter acts."""
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rank, alpha, modules = int(values["r"]), float(values["lora_alpha"]), str(values["target_modules"])
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no {CONFIG}, so it is no adapter.") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not the configuration of an adapter ({type(error).__name__}: {error}).") from None
    parts = modules.removeprefix("(").removesuffix(_LINEAR_LAYERS).split("|")
    num = max(_copies(model, part) for part in PARTS)
    known = ({_path(model, part, copy) for part in PARTS} for copy in range(num))  # an adapter is for one task
    if not 1 <= rank <= _MAX_RANK or modules != _target_modules(parts) or not any(set(parts) <= own for own in known):
        raise ValueError(
            f"{path}: rank {rank} on the modules {modules!r} is nothing that Eft writes for a model of this form."
        )
    config = _lora_config(rank, alpha, modules)
    for key, value in config.to_dict().items():
        if key not in _DESCRIPTIVE and values.get(key, value) != value:
            raise ValueError(
                f"{path} sets {key} to {values[key]!r}; only plain LoRA is supported, with {value!r} there."
            )
    return config


def _lora_config(rank: int, alpha: float, modules: str) -> LoraConfig:
    from peft import LoraConfig

    # PEFT types alpha as a whole number, but only divides it by the rank.
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]
        target_modules=modules,
        base_model_name_or_path="eft",  # else PEFT writes where the model happened to lie
    )


def _target_modules(modules: Sequence[str]) -> str:
    """The linear layers of these modules, as the one regular expression PEFT matches (a list would be unordered)."""
    return f"({'|'.join(modules)}{_LINEAR_LAYERS}"


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / WEIGHTS
    if not path.is_file():
        raise ValueError(f"{folder} holds no {WEIGHTS}: other formats of weights are not read.")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}). Get the adapter again.") from None
