"""Which tasks have an array form."""

from __future__ import annotations

from typing import Any

from pipeline.batched.form import ArrayForm
from pipeline.tasks.registry import make
from pipeline.tasks.spec import TaskSpec


def array_form(spec: TaskSpec) -> ArrayForm:
    """Return a task's array form: the catalogue's, or that of your own environment's method `array_form`.

    Raises:
        ValueError: it has none.
    """
    form = _find(spec)
    if form is None:
        raise ValueError(
            f"{spec.name} has no array form: only tasks on MuJoCo can have one. A Gymnasium MujocoEnv of your own "
            "gives it by a method `array_form` (examples/README.md)."
        )
    return form


def has_array_form(spec: TaskSpec) -> bool:
    """Return whether a task has an array form."""
    return _find(spec) is not None


def _find(spec: TaskSpec) -> ArrayForm | None:
    if spec.suite in ("dmcontrol", "dmcontrol-ext"):
        from pipeline.batched.dmcontrol import FORMS

        return FORMS.get(spec.env_id)
    if spec.suite == "mujoco":
        from pipeline.batched.gymnasium_bodies import FORMS as bodies

        return bodies.get(spec.env_id)
    if spec.suite == "ogbench":
        from pipeline.batched.ogbench import form, has_form

        return form(spec.env_id) if has_form(spec.env_id) else None
    return _own(spec) if spec.suite == "gymnasium" else None


def _own(spec: TaskSpec) -> ArrayForm | None:
    """Ask the user's own environment."""
    env = make(spec, spec.obs_dim, spec.action_dim)
    try:
        simulator: Any = env.simulator
        body = simulator.env.unwrapped
        form = body.array_form() if hasattr(body, "array_form") else None
    finally:
        env.close()
    if form is not None and not all(hasattr(body, part) for part in ("model", "data", "frame_skip")):
        raise ValueError(
            f"{spec.name}: {type(body).__name__} has a method `array_form` and is no Gymnasium MujocoEnv: its `model`, "
            "`data` and `frame_skip` are needed to step it as arrays."
        )
    if form is not None and not isinstance(form, ArrayForm):
        raise ValueError(
            f"{spec.name}: `array_form` of {type(body).__name__} returned {type(form).__name__}, expected a "
            "pipeline.batched.form.ArrayForm."
        )
    return form
