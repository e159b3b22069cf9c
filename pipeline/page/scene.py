"""What a simulator shows, in the browser: MuJoCo's bodies as shapes that it draws, other simulators as images."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pipeline.extras import needs
from pipeline.page.geometry import Shape, colour_of, shape_of, texture_of
from pipeline.tasks.physics import mujoco_of
from pipeline.tasks.task_env import TaskEnv

if TYPE_CHECKING:
    import mujoco
    import viser

_SHOWN_GROUPS = 3  # MuJoCo hides groups 3 to 5 unless asked: shapes that only collide
_STILL = 1e-5  # m and quaternion units: less is not sent
_WINDOW = 1.0  # m that a body moves before the view follows it
_DOWNWARD = 0.9  # cosine to the vertical
_FOLLOWED = ("dmcontrol", "dmcontrol-ext", "mujoco")
IMAGE_SIDE = 2.0  # m, of an image in the scene
_numbers = itertools.count()  # of the scenes that were shown


class View(NamedTuple):
    """Where the camera stands."""

    position: tuple[float, float, float]
    look_at: tuple[float, float, float]


# Of the suites whose tasks share a place; others are seen from where their extent says.
_VIEWS = {
    "metaworld": View((1.05, 0.1, 0.85), (0.02, 0.6, 0.14)),
    "robodesk": View((0.0, -0.2, 2.4), (0.0, 0.5, 1.0)),
}
IMAGE_VIEW = View((0.0, -2.6, 0.0), (0.0, 0.0, 0.0))


class _Part(NamedTuple):
    """A geom or a site: what of it may change while a task is played."""

    name: str
    body: int
    kind: int
    size: np.ndarray
    position: np.ndarray
    rotation: np.ndarray
    rgba: np.ndarray
    material: int
    geom: int | None


class BodyScene:
    """A MuJoCo model in the browser; `update` sends what has moved or changed.

    Args:
        server: of the page.
        model: the model, whose colours and places may change later, as goals do.
        data: its state.
        follow: keep a body that travels within view.
    """

    def __init__(self, server: viser.ViserServer, model: mujoco.MjModel, data: mujoco.MjData, follow: bool) -> None:
        self.model, self._server, self._scene = model, server, server.scene
        # A name of its own: what is taken out and put in under one name may reach a browser in the other order.
        self._name = f"/world{next(_numbers)}"
        self._root = self._scene.add_frame(self._name, show_axes=False)
        self._frames: dict[int, viser.FrameHandle] = {}
        self._poses: dict[int, np.ndarray] = {}
        self._offset, self._followed = np.zeros(2), _travelling_body(model) if follow else None
        self._drawn: dict[str, bytes] = {}
        self._tendons: viser.LineSegmentsHandle | None = None
        self._look = self._appearance()
        with server.atomic():
            for part in _parts(model):
                self._draw(part)
            self.update(data)

    def update(self, data: mujoco.MjData) -> None:
        """Send the poses that changed, and shapes whose colour or place on their body did."""
        with self._server.atomic():
            if (look := self._appearance()) != self._look:
                self._look = look
                for part in _parts(self.model):
                    self._draw(part)
            for body, frame in self._frames.items():
                pose = np.concatenate([data.xpos[body], data.xquat[body]])
                if body not in self._poses or np.abs(pose - self._poses[body]).max() > _STILL:
                    self._poses[body] = pose
                    frame.position, frame.wxyz = pose[:3], pose[3:]
            self._follow(data)
            self._draw_tendons(data)

    def remove(self) -> None:
        """Take it out of the page."""
        self._root.remove()

    def _appearance(self) -> tuple[bytes, ...]:
        model = self.model
        places = (model.geom_pos, model.geom_quat, model.geom_size, model.site_pos, model.site_size)
        return tuple(array.tobytes() for array in (*places, model.geom_rgba, model.site_rgba, model.mat_rgba))

    def _draw(self, part: _Part) -> None:
        colour = colour_of(self.model, part.rgba, part.material)
        key = b"".join(np.asarray(a, np.float64).tobytes() for a in (part.size, part.position, part.rotation, colour))
        if self._drawn.get(part.name) == key or (part.name not in self._drawn and colour[3] == 0):
            return
        shape = shape_of(self.model, part.kind, part.size, part.geom)
        if shape is None:
            return
        self._drawn[part.name] = key
        if part.body not in self._frames:
            self._frames[part.body] = self._scene.add_frame(f"{self._name}/{part.body}", show_axes=False)
        name, image = f"{self._name}/{part.body}/{part.name}", texture_of(self.model, part.material)
        place: dict[str, Any] = {"position": part.position, "wxyz": part.rotation, "visible": bool(colour[3] > 0)}
        if shape.uv is not None and image is not None:
            self._scene.add_mesh_trimesh(name, _textured(shape, image, self.model.mat_rgba[part.material]), **place)
            return
        opacity = None if colour[3] >= 1 else float(colour[3])
        rgb = np.rint(255 * colour[:3]).astype(np.uint8)
        self._scene.add_mesh_simple(
            name, shape.vertices, shape.faces, color=rgb, opacity=opacity, flat_shading=shape.flat, side="double",
            cast_shadow=opacity is None, **place,
        )  # fmt: skip

    def _follow(self, data: mujoco.MjData) -> None:
        if self._followed is None:
            return
        away = data.xpos[self._followed, :2] - self._offset
        beyond = away - np.clip(away, -_WINDOW, _WINDOW)
        if np.abs(beyond).max() > _STILL:
            self._offset = self._offset + beyond
            self._root.position = (*(-self._offset), 0.0)

    def _draw_tendons(self, data: mujoco.MjData) -> None:
        """Draw the strings that pull, which have no shape of their own."""
        if not self.model.ntendon:
            return
        lines = np.concatenate([np.zeros((0, 2, 3)), *_strings(self.model, data)]).astype(np.float32)
        if not len(lines):
            return
        colour = (np.clip(self.model.tendon_rgba[0, :3], 0, 1) * 255).astype(np.uint8)
        if self._tendons is None or self._tendons.points.shape != lines.shape:
            self._tendons = self._scene.add_line_segments(
                f"{self._name}/tendons", lines, colour, thickness=3.0, thickness_units="screen"
            )
        elif np.abs(self._tendons.points - lines).max() > _STILL:
            self._tendons.points = lines


class ImageScene:
    """The images of a simulator that draws itself, on a screen that stands in the scene."""

    model = None

    def __init__(self, server: viser.ViserServer, image: np.ndarray) -> None:
        turned = (0.7071068, -0.7071068, 0.0, 0.0)  # upright, towards the camera
        self._screen = server.scene.add_image(
            f"/screen{next(_numbers)}", image, IMAGE_SIDE, IMAGE_SIDE, wxyz=turned, jpeg_quality=85, cast_shadow=False,
            receive_shadow=False,
        )  # fmt: skip

    def update(self, image: np.ndarray) -> None:
        """Send an image, (size, size, 3) uint8."""
        self._screen.image = image

    def remove(self) -> None:
        """Take it out of the page."""
        self._screen.remove()


def view_of(env: TaskEnv) -> View:
    """Return from where an environment is looked at, as it stands."""
    spec, found = env.task, mujoco_of(env)
    if found is None:
        return IMAGE_VIEW
    if spec.suite in _VIEWS:
        return _VIEWS[spec.suite]
    model, data = found
    if spec.suite == "ogbench" and not spec.env_id.endswith("/run"):  # a maze or a field, from above
        height = float(model.cam_pos[:, 2].max()) if model.ncam else 3 * float(model.stat.extent)
        return View((0.0, -0.35 * height, 0.95 * height), (0.0, 0.0, 0.0))
    moving = np.flatnonzero((model.geom_bodyid > 0) & (model.geom_group < _SHOWN_GROUPS))
    if not len(moving):
        return View((2.0, -4.0, 2.0), (0.0, 0.0, 0.0))
    places, reach = data.geom_xpos[moving], model.geom_rbound[moving, None]
    low, high = (places - reach).min(0), (places + reach).max(0)
    middle, radius = (low + high) / 2, float(np.clip(np.linalg.norm(high - low) / 2, 0.1, 4.0))
    flat = model.ncam > 0 and abs(float(data.cam_xmat[0, 8])) > _DOWNWARD  # MuJoCo's own camera looks down on it
    x, y, z = middle + radius * np.array([0.0, -0.9, 2.5] if flat else [0.6, -2.6, 0.8])
    return View((x, y, z), (float(middle[0]), float(middle[1]), float(middle[2])))


def open_scene(server: viser.ViserServer, env: TaskEnv) -> BodyScene | ImageScene:
    """Show an environment.

    Raises:
        RenderingUnavailable: it draws itself, and this machine cannot draw.
    """
    if (found := mujoco_of(env)) is None:
        return ImageScene(server, env.render())
    return BodyScene(server, *found, follow=env.task.suite in _FOLLOWED)


def update_scene(server: viser.ViserServer, scene: BodyScene | ImageScene, env: TaskEnv) -> BodyScene | ImageScene:
    """Show what has happened since, and return the scene: another one where the simulator has built a new model."""
    if isinstance(scene, ImageScene):
        scene.update(env.render())
        return scene
    found = mujoco_of(env)
    assert found is not None  # it was there before
    if found[0] is not scene.model:
        scene.remove()
        return open_scene(server, env)
    scene.update(found[1])
    return scene


def _parts(model: mujoco.MjModel) -> Iterator[_Part]:
    """Yield the geoms and sites that MuJoCo draws."""
    for geom in np.flatnonzero(model.geom_group < _SHOWN_GROUPS).tolist():
        yield _Part(
            f"geom{geom}", int(model.geom_bodyid[geom]), int(model.geom_type[geom]), model.geom_size[geom],
            model.geom_pos[geom], model.geom_quat[geom], model.geom_rgba[geom], int(model.geom_matid[geom]), geom,
        )  # fmt: skip
    for site in np.flatnonzero(model.site_group < _SHOWN_GROUPS).tolist():
        yield _Part(
            f"site{site}", int(model.site_bodyid[site]), int(model.site_type[site]), model.site_size[site],
            model.site_pos[site], model.site_quat[site], model.site_rgba[site], int(model.site_matid[site]), None,
        )  # fmt: skip


def _travelling_body(model: mujoco.MjModel) -> int | None:
    """Return the first body that is free to move through the world; None if all hang on something."""
    for body in range(1, model.nbody):
        start, count = int(model.body_jntadr[body]), int(model.body_jntnum[body])
        kinds = model.jnt_type[start : start + count].tolist()
        if int(model.body_parentid[body]) == 0 and (0 in kinds or kinds.count(2) >= 1):  # a free joint, or slides
            return body
    return None


def _strings(model: mujoco.MjModel, data: mujoco.MjData) -> Iterator[np.ndarray]:
    """Yield the segments (n, 2, 3) of each tendon that runs through space."""
    for tendon in range(model.ntendon):
        start, count = int(data.ten_wrapadr[tendon]), int(data.ten_wrapnum[tendon])
        points = data.wrap_xpos.reshape(-1, 3)[start : start + count]
        if count > 1:
            yield np.stack([points[:-1], points[1:]], axis=1)


def _textured(shape: Shape, image: np.ndarray, rgba: np.ndarray) -> Any:
    with needs("play"):
        import trimesh
        from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
    material = trimesh.visual.material.PBRMaterial(
        baseColorFactor=rgba, baseColorTexture=picture, metallicFactor=0.0, roughnessFactor=0.9, doubleSided=True
    )
    visual = trimesh.visual.TextureVisuals(uv=shape.uv, material=material)
    return trimesh.Trimesh(shape.vertices, shape.faces, visual=visual, process=False)
