"""What a task is: a simulated body, its instructions, its limits and its score."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pipeline.config import near

Suite = Literal[
    "dmcontrol",
    "dmcontrol-ext",
    "metaworld",
    "maniskill",
    "mujoco",
    "box2d",
    "robodesk",
    "ogbench",
    "miniarcade",
    "atari",
    "gymnasium",
]
Split = Literal["train", "held_out", "extra", "custom"]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Limit = float | tuple[float, ...]  # of every number of an action, or of each
Bounds = tuple[Limit, Limit]  # lowest and highest

_number = r"[+-]?\d+(?:\.\d+)?"
SUCCESS = "success at last step"
SCORE_FORMS = (
    SUCCESS,
    "return/1000",
    "clip(return/250,0,1)",
    "clip((return+15)/15,0,1)",
    "clip(return,0,5000)/5000",
    "1+clip(return,-50,0)/50",
)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class TaskSpec:
    """One task. Built by `registry.load_catalogue`; every field of a task file is a field here.

    Attributes:
        name: unique name, lower-case letters, digits and hyphens.
        suite: which adapter runs it.
        env_id: the simulator's own name, `walker/walk`, `reach-v3` or `module:namespace/Name-v0`.
        embodiment: one sentence about the body, said before every instruction.
        instructions: phrasings of what to do. The first is the canonical one; the last of several is kept for
            evaluation, training never draws it.
        obs_dim: width of the simulator's observation, before padding.
        action_dim: width of the simulator's action, before padding.
        action_repeat: simulator steps per agent step; their rewards are summed.
        episode_length: agent steps until the episode is truncated.
        discount: discount factor of its own, or None to derive it from `episode_length`.
        score: rule that turns an episode into a score in [0, 1], one of the forms in `SCORE_FORMS`.
        tags: words to find the task by.
        split: what the task is for; your own tasks are `custom`.
        env_kwargs: keyword arguments for the simulator's constructor.
        action_bounds: lowest and highest action, one number for all or `action_dim` numbers each, where the
            environment gives none; for the suite gymnasium alone.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    suite: Suite
    env_id: Text
    embodiment: Text
    instructions: Annotated[tuple[Text, ...], Field(min_length=1)]
    obs_dim: Count
    action_dim: Count
    action_repeat: Count
    episode_length: Count
    score: Text
    discount: Annotated[float, Field(gt=0, lt=1)] | None = None
    tags: tuple[str, ...] = ()
    split: Split = "custom"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    action_bounds: Bounds | None = None

    def __post_init__(self) -> None:
        if self.score != SUCCESS:
            _line(self.score)
        if self.action_bounds is not None:
            _check_bounds(self.suite, self.action_dim, self.action_bounds)

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values that `parse_spec` reads; no `action_bounds` where there are none, as before them."""
        values = dataclasses.asdict(self)
        if self.action_bounds is None:
            del values["action_bounds"]
        return values

    def text(self, phrasing: int = 0) -> str:
        """Return `<embodiment> <instruction>`, what the text encoder reads; phrasing 0 is the canonical one.

        Raises:
            IndexError: the task has fewer phrasings.
        """
        if not 0 <= phrasing < len(self.instructions):
            raise IndexError(
                f"task {self.name}: phrasing {phrasing} asked for, it has {len(self.instructions)} (counted from 0). "
                "Add phrasings to the task's file, or lower language.phrasings in params.yaml."
            )
        return f"{self.embodiment} {self.instructions[phrasing]}"

    def training_texts(self) -> list[str]:
        """Return the texts that training may draw, the canonical one first."""
        return [self.text(phrasing) for phrasing in range(max(1, len(self.instructions) - 1))]

    def unseen_text(self) -> str:
        """Return the text kept for evaluation; the canonical one where a task has no other."""
        return self.text(len(self.instructions) - 1)

    def check_width(self, obs_dim: int, observed: int | None = None, parts: str = "") -> None:
        """Refuse a model that is too narrow for what is observed of the task.

        Args:
            obs_dim: O, what the model takes.
            observed: values that are observed; None for the state alone.
            parts: what they consist of, for the error.

        Raises:
            ValueError: says how wide model.obs_dim must be.
        """
        width = self.obs_dim if observed is None else observed
        if width > obs_dim:
            raise ValueError(
                f"{self.name} has {width} observation dims{parts}, model.obs_dim is {obs_dim}: raise it to at least "
                f"{width} or leave the task out"
            )

    def evaluate(self, episode_return: float, success: bool) -> float:
        """Score one whole episode, in [0, 1].

        Args:
            episode_return: undiscounted sum of the rewards of all agent steps; an unknown one, NaN, gives an unknown
                score unless it is success that counts.
            success: the `success` of the episode's last step.
        """
        if self.score == SUCCESS:
            return float(success)
        scale, offset = _line(self.score)
        return min(max(episode_return * scale + offset, 0.0), 1.0)


def parse_spec(values: Any, where: str) -> TaskSpec:
    """Turn the plain values of a task file into a `TaskSpec`.

    Args:
        values: key to value, as read from YAML.
        where: file and entry, for errors.

    Raises:
        ValueError: a key is missing, unknown, of the wrong type or out of bounds; every one is named.
    """
    keys = [one.name for one in dataclasses.fields(TaskSpec)]
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected the keys {', '.join(keys)}, not {values!r}.")
    try:
        return TypeAdapter(TaskSpec).validate_python(values)
    except ValidationError as error:
        problems = [_describe(dict(problem), keys) for problem in error.errors()]
    raise ValueError("\n".join(f"{where}: {problem}" for problem in problems))


def _line(rule: str) -> tuple[float, float]:
    """Read a score rule as (scale, offset): every rule on the return is a line, clipped to [0, 1]."""
    text = rule.replace(" ", "")
    n = f"({_number})"
    if match := re.fullmatch(rf"return/{n}|clip\(return/{n},0,1\)", text):
        scale, offset = float(match[1] or match[2]), 0.0
    elif match := re.fullmatch(rf"clip\(\(return([+-]\d+(?:\.\d+)?)\)/{n},0,1\)", text):
        scale, offset = float(match[2]), float(match[1])
    elif (match := re.fullmatch(rf"clip\(return,0,{n}\)/{n}", text)) and float(match[1]) == float(match[2]):
        scale, offset = float(match[2]), 0.0
    elif (match := re.fullmatch(rf"1\+clip\(return,{n},0\)/{n}", text)) and float(match[1]) == -float(match[2]):
        scale, offset = float(match[2]), float(match[2])
    else:
        raise ValueError(f"score rule {rule!r} is not known. Write one like: " + ", ".join(map(repr, SCORE_FORMS)))
    if scale <= 0:
        raise ValueError(f"score rule {rule!r} divides by {scale:g}; it must be a number above 0")
    return 1.0 / scale, offset / scale


def _check_bounds(suite: str, action_dim: int, bounds: Bounds) -> None:
    if suite != "gymnasium":
        raise ValueError(
            f"`action_bounds` are for the suite gymnasium; the actions of {suite} have bounds. Remove them"
        )
    low, high = (limit if isinstance(limit, tuple) else (limit,) * action_dim for limit in bounds)
    if len(low) != action_dim or len(high) != action_dim:
        raise ValueError(
            f"`action_bounds` has {len(low)} lowest and {len(high)} highest numbers; expected one for all, or "
            f"action_dim = {action_dim} of each"
        )
    if not all(-math.inf < least < most < math.inf for least, most in zip(low, high, strict=True)):
        raise ValueError(f"`action_bounds` is {bounds}: every lowest number must be below its highest, and both finite")


def _describe(problem: dict[str, Any], keys: list[str]) -> str:
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"`{key}` is missing."
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"`{key}` is not a key of a task.{near(key, keys)}"
    if not key:
        return str(problem["msg"]).removeprefix("Value error, ")
    return f"`{key}` is {problem['input']!r}: {problem['msg']}."
