"""Sampling model-predictive control on the true simulator: an expert without training.

At each replanning, P noisy action sequences around the last plan are rolled out from the present state, and the plan
becomes the weighted mean of the best. The mean is executed rather than the best sample: it is a smoother function of
the state, so clones learn it better.

Source: Williams et al. 2017 (MPPI); Pinneri et al. 2020 (kept elites, shifted plan); Howell et al. 2022 (splines).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass
from ruamel.yaml import YAML

RECIPES = Path(__file__).with_name("recipes.yaml")

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """How one task is planned. The values live in recipes.yaml."""

    min_score: Annotated[float, Field(ge=0, le=1)]  # a demonstration is kept from this score on
    horizon: Count  # T, agent steps looked ahead
    samples: Count  # P, action sequences per iteration
    iterations: Count  # refinements per replanning
    replan_every: Count  # agent steps executed before planning again
    knots: Count  # points that the noise is drawn at and interpolated between
    noise: Positive  # std of the noise; actions span [-1, 1]
    elites: Count  # sequences whose weighted mean is the plan
    temperature: Positive  # of the weights, in units of the std of the elites' returns
    coarseness: Count  # how many physics steps of the true simulator one planned physics step replaces
    runge_kutta: bool  # plan with the Runge-Kutta method where the true simulator has it: 4 times the work per step
    control_cost: Annotated[float, Field(ge=0)]  # times the mean squared action, taken off the planned reward
    score: Annotated[float, Field(ge=0, le=1)] | None = None  # mean of undisturbed episodes, where it was measured
    clone: Annotated[float, Field(ge=0, le=1)] | None = None  # of a clone of 20 of its demonstrations, likewise


@cache
def load_recipes() -> dict[str, Recipe]:
    """Read recipes.yaml: for each task the common values with its own laid over them.

    Raises:
        pydantic.ValidationError: a value is missing, unknown or out of bounds.
    """
    content = YAML(typ="safe").load(RECIPES.read_text(encoding="utf-8"))
    parse = TypeAdapter(Recipe).validate_python
    return {task: parse({**content["all"], **own}) for task, own in content["tasks"].items()}


class RollOut(Protocol):
    """A planning copy of an episode's simulator."""

    action_dim: int

    def __call__(self, actions: np.ndarray) -> Any:
        """Return what actions (P, T, a) in [-1, 1] lead to, in the form that the reward reads."""


class Planner:
    """Plans one episode, from wherever its simulator stands.

    Args:
        recipe: how.
        simulator: the planning copy of the episode's simulator.
        reward: reward (P, T) of what it returns.
        rng: where the noise comes from.
    """

    def __init__(
        self, recipe: Recipe, simulator: RollOut, reward: Callable[[Any], np.ndarray], rng: np.random.Generator
    ):
        self.recipe, self.simulator, self.reward, self.rng = recipe, simulator, reward, rng
        self.mean = np.zeros((recipe.horizon, simulator.action_dim))
        self._elites = self.mean[None]
        self._spline = spline(recipe.horizon, recipe.knots)

    def plan(self) -> np.ndarray:
        """Return the next `replan_every` actions (replan_every, nu) in [-1, 1]."""
        recipe = self.recipe
        std = np.full_like(self.mean, recipe.noise)
        for _ in range(recipe.iterations):
            samples = self._sample(std)
            returns = self.evaluate(samples)
            order = np.argsort(-returns, kind="stable")[: recipe.elites]
            elites, returns = samples[order], returns[order]
            weights = np.exp((returns - returns[0]) / (recipe.temperature * returns.std() + 1e-9))
            weights /= weights.sum()
            self.mean = np.einsum("p,pta->ta", weights, elites)
            std = np.sqrt(np.einsum("p,pta->ta", weights, np.square(elites - self.mean))).clip(0.05, recipe.noise)
            self._elites = elites[: max(recipe.elites // 2, 1)]
        actions = self.mean[: recipe.replan_every].copy()
        self.mean, self._elites = self._shift(self.mean), self._shift(self._elites)
        return actions

    def evaluate(self, actions: np.ndarray) -> np.ndarray:
        """Return the mean planned reward (P,) of action sequences (P, T, nu); a diverged rollout is the worst."""
        values = self.reward(self.simulator(actions)).mean(axis=1)
        values -= self.recipe.control_cost * np.square(actions).mean(axis=(1, 2))
        return np.where(np.isfinite(values), values, -1e9)

    def _sample(self, std: np.ndarray) -> np.ndarray:
        """Return the last plan, no action at all, the last elites, and noise around the plan."""
        kept = np.concatenate([self.mean[None], np.zeros_like(self.mean)[None], self._elites])
        num = max(self.recipe.samples - len(kept), 1)
        knots = self.rng.standard_normal((num, self.recipe.knots, self.mean.shape[1]))
        knots[::3] *= 0.3  # some look closely: wide noise alone never settles
        return np.concatenate([kept, self.mean + std * (self._spline @ knots)]).clip(-1, 1)

    def _shift(self, plan: np.ndarray) -> np.ndarray:
        count = min(self.recipe.replan_every, self.recipe.horizon)
        return np.concatenate([plan[..., count:, :], np.repeat(plan[..., -1:, :], count, axis=-2)], axis=-2)


def spline(horizon: int, knots: int) -> np.ndarray:
    """Return the matrix (horizon, knots) that interpolates linearly between evenly spaced knots."""
    if knots >= horizon or knots == 1:
        return np.eye(horizon, knots) if knots > 1 else np.ones((horizon, 1))
    position = np.linspace(0, knots - 1, horizon)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(knots)))
