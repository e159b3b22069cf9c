"""Which tasks have an array form."""

from __future__ import annotations

from pipeline.batched.form import ArrayForm
from pipeline.tasks.spec import TaskSpec


def array_form(spec: TaskSpec) -> ArrayForm:
    """Return a task's array form.

    Raises:
        ValueError: it has none.
    """
    if spec.suite in ("dmcontrol", "dmcontrol-ext"):
        from pipeline.batched.dmcontrol import FORMS

        if spec.env_id in FORMS:
            return FORMS[spec.env_id]
    elif spec.suite == "mujoco":
        from pipeline.batched.gymnasium_bodies import FORMS as bodies

        return bodies[spec.env_id]
    elif spec.suite == "ogbench":
        from pipeline.batched.ogbench import form, has_form

        if has_form(spec.env_id):
            return form(spec.env_id)
    raise ValueError(f"{spec.name} has no array form: only tasks on MuJoCo can have one (pipeline/batched).")
