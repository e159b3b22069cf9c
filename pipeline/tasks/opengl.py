"""Which OpenGL MuJoCo draws with: MUJOCO_GL, or the one that needs no display.

MuJoCo and dm_control load it while they are imported, also where nothing will be drawn, and do not start without it.
So one that cannot be loaded is turned off before; whoever draws then learns why it cannot.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import sys
import warnings

_OFF = ("disable", "disabled", "off", "false", "0")
_DEFAULT = ("glfw", "glx", "enable", "enabled", "on", "true", "1")  # what MuJoCo takes without a name, with a display
_LIBRARIES = {"egl": "libEGL.so", "osmesa": "libOSMesa.so"}
_WHY = "EFT_CANNOT_DRAW"  # a variable, so that the processes of environments know it too


def settle_backend() -> None:
    """Turn drawing off where MUJOCO_GL names what cannot be loaded; call it before MuJoCo is imported."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen:
        os.environ.pop("MUJOCO_GL", None)  # set and empty is unset to MuJoCo, and a mistake to dm_control and Gymnasium
    if sys.platform != "linux" or not chosen or chosen in _OFF:
        return
    os.environ.pop(_WHY, None)
    if chosen in _DEFAULT:
        return
    other = os.environ.get("PYOPENGL_PLATFORM", "").lower() or chosen
    if chosen not in _LIBRARIES:
        why = f"MUJOCO_GL={chosen} is not known; write egl, osmesa or glfw"
    elif other != chosen:
        why = f"MUJOCO_GL={chosen} contradicts PYOPENGL_PLATFORM={other}; remove one"
    elif not _is_there(_LIBRARIES[chosen]):
        why = f"MUJOCO_GL={chosen} needs {_LIBRARIES[chosen]}, which is not on this machine"
    else:
        os.environ["MUJOCO_GL"] = chosen  # dm_control takes lower case alone
        return
    os.environ[_WHY], os.environ["MUJOCO_GL"] = why, "off"


def settle_dm_control() -> None:
    """Import what dm_control draws with; where that does not start, go without: states need none.

    It starts OpenGL while it is imported, on the device that MUJOCO_EGL_DEVICE_ID names.
    """
    drawing = "dm_control._render"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*DISPLAY environment variable is missing.*")
        try:
            importlib.import_module(drawing)
        except ModuleNotFoundError:  # it is not installed, as whoever needs it says
            return
        except Exception:
            for name in [name for name in sys.modules if name.startswith(drawing)]:
                del sys.modules[name]
            before = os.environ.get("MUJOCO_GL")
            os.environ["MUJOCO_GL"] = "off"
            try:
                importlib.import_module(drawing)
            finally:
                os.environ.pop("MUJOCO_GL")
                if before is not None:
                    os.environ["MUJOCO_GL"] = before


def settle_window() -> None:
    """Turn drawing off where MUJOCO_GL asks for a window and none can be opened; for those who draw with Gymnasium.

    Its own drawing goes on without one, and at the second attempt MuJoCo ends the process.
    """
    if why_off() is None and backend() == "glfw" and not _opens_windows():
        display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        why = f"MUJOCO_GL={os.environ.get('MUJOCO_GL', 'glfw')} needs a display, and "
        os.environ[_WHY] = why + (f"DISPLAY={display} cannot be opened" if display else "DISPLAY names none")
        os.environ["MUJOCO_GL"] = "off"


def why_off() -> str | None:
    """Say why drawing is turned off; None if it is not."""
    if os.environ.get("MUJOCO_GL", "").lower().strip() not in _OFF:
        return None
    return os.environ.get(_WHY) or f"MUJOCO_GL={os.environ['MUJOCO_GL']} turns it off"


def backend() -> str:
    """Return the OpenGL backend: MUJOCO_GL where it names one, else the one that needs no display."""
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen in ("glfw", "glx"):
        return "glfw"
    return {"linux": "egl", "darwin": "cgl"}.get(sys.platform, "glfw") if chosen in ("", *_DEFAULT) else chosen


def _opens_windows() -> bool:
    """Whether GLFW finds a display."""
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")  # what it lacks
        import glfw

        return bool(glfw.init())
    return False


def _is_there(library: str) -> bool:
    """Whether a library can be loaded, under the names that PyOpenGL tries."""
    for name in (library, *(f"{library}.{version}" for version in range(9, -1, -1))):
        with contextlib.suppress(OSError):
            ctypes.CDLL(name)
            return True
    return False
