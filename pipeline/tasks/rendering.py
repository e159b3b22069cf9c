"""Drawing a MuJoCo scene without a display. Nothing here is touched before the first image is asked for."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.tasks.opengl import backend, why_off

if TYPE_CHECKING:
    import mujoco  # imported by the camera alone: not every simulator is MuJoCo


_ADVICE = (
    "On Debian or Ubuntu install libegl1 libegl-mesa0 libgl1-mesa-dri and leave the variable MUJOCO_GL out; elsewhere "
    "set it to egl, osmesa or glfw, whichever your machine has. Training and scores need no images."
)


class RenderingUnavailable(RuntimeError):
    """This machine cannot draw. Simulation does not need it."""


class Camera:
    """Draws one simulator's scene.

    Args:
        model: the `mujoco.MjModel`.
        size: pixels of a side.
        camera: number or name of a camera of the model; or the fields of a free one, an `MjvCamera`, by name.

    Raises:
        RenderingUnavailable: no OpenGL driver could be started, or it cannot draw this scene.
    """

    def __init__(self, model: mujoco.MjModel, size: int, camera: int | str | dict[str, Any]) -> None:
        import mujoco

        model.vis.global_.offwidth = max(model.vis.global_.offwidth, size)
        model.vis.global_.offheight = max(model.vis.global_.offheight, size)
        model.vis.quality.shadowsize = min(model.vis.quality.shadowsize, 1024)  # enough here, and 2.5 times faster
        self._model = model
        self._context, self._draw_context = _open_contexts(model, size)
        self._scene = mujoco.MjvScene(model, maxgeom=5000)
        self._options = mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        if isinstance(camera, dict):
            for name, value in camera.items():
                setattr(self._view, name, value)
        else:
            self._view.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self._view.fixedcamid = model.camera(camera).id
        self._rectangle = mujoco.MjrRect(0, 0, size, size)

    def draw(self, data: mujoco.MjData) -> np.ndarray:
        """Return the image of `data`, (size, size, 3) uint8 RGB, upright."""
        import mujoco

        self._context.make_current()
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, self._options, None, self._view, everything, self._scene)
        mujoco.mjr_render(self._rectangle, self._scene, self._draw_context)
        image = np.empty((self._rectangle.height, self._rectangle.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._rectangle, self._draw_context)
        return image[::-1].copy()  # OpenGL counts rows from the bottom

    def close(self) -> None:
        """Release the OpenGL context."""
        self._context.make_current()
        self._draw_context.free()
        self._context.free()


def _open_contexts(model: mujoco.MjModel, size: int) -> tuple[Any, mujoco.MjrContext]:
    """Return an OpenGL context, current, and MuJoCo's own in it, which draws off screen."""
    # MuJoCo's own Renderer fixes its backend when mujoco is first imported, before anyone asked for an image.
    if why := why_off():
        raise RenderingUnavailable(f"cannot draw: {why}. {_ADVICE}")
    import mujoco

    context = None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            context = importlib.import_module(f"mujoco.{backend()}").GLContext(size, size)
            if backend() == "glfw" and not context._context:  # it fails without an exception, and aborts later
                raise OSError("it opens no window")
            context.make_current()
            draw_context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, draw_context)
            return context, draw_context
        except Exception as error:
            with contextlib.suppress(Exception):
                context.free()  # type: ignore[union-attr]
            said = "".join(dict.fromkeys(f"; {one.message}" for one in caught))
            raise RenderingUnavailable(
                f"cannot draw: the OpenGL backend {backend()!r} did not start ({type(error).__name__}: {error}{said}). "
                f"{_ADVICE}"
            ) from error
