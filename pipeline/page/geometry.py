"""The shapes of a MuJoCo model as triangles, for a browser to draw."""

# pyright: reportAttributeAccessIssue=false
# (MuJoCo's Python module is compiled and has no type stubs.)

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pipeline.extras import needs

with needs("play"):
    import mujoco
    import trimesh

_INFINITE = 60.0  # m, half side of a plane without bounds
_UNSET = (0.5, 0.5, 0.5, 1.0)  # a geom's colour in MuJoCo unless it was given one: its material's then counts
_ROUND = 24  # sides of cylinders and capsules
Type = mujoco.mjtGeom


class Shape(NamedTuple):
    """One shape in its own frame."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3) of vertex numbers
    flat: bool  # its edges are sharp
    uv: np.ndarray | None = None  # (V, 2) where the texture is, repeated beyond [0, 1]; None for one colour


def shape_of(model: mujoco.MjModel, kind: int, size: np.ndarray, geom: int | None = None) -> Shape | None:
    """Return a geom or site as triangles; None for what is not drawn.

    Args:
        model: the model.
        kind: one of `mujoco.mjtGeom`.
        size: (3,) as MuJoCo has it for that kind.
        geom: number of the geom, which a mesh, height field or textured plane needs; None for a site.
    """
    made = trimesh.creation
    if kind == Type.mjGEOM_SPHERE:
        return _of(made.icosphere(subdivisions=3, radius=size[0]))
    if kind == Type.mjGEOM_ELLIPSOID:
        return _of(made.icosphere(subdivisions=3).apply_scale(size))
    if kind == Type.mjGEOM_CAPSULE:
        return _of(made.capsule(height=2 * size[1], radius=size[0], count=[16, _ROUND]))
    if kind == Type.mjGEOM_CYLINDER:
        return _of(made.cylinder(radius=size[0], height=2 * size[1], sections=_ROUND), flat=True)
    if kind == Type.mjGEOM_BOX:
        return _of(made.box(extents=2 * size), flat=True)
    if geom is None:
        return None
    if kind == Type.mjGEOM_PLANE:
        return _plane(model, geom, size)
    if kind == Type.mjGEOM_MESH:
        return _mesh(model, int(model.geom_dataid[geom]))
    if kind == Type.mjGEOM_HFIELD:
        return _height_field(model, int(model.geom_dataid[geom]))
    return None


def colour_of(model: mujoco.MjModel, rgba: np.ndarray, material: int) -> np.ndarray:
    """Return the colour (4,) in [0, 1] of a geom or site: its own, else its material's, times its texture's mean."""
    if material < 0 or not np.allclose(rgba, _UNSET):
        return np.clip(rgba, 0, 1)
    colour = model.mat_rgba[material].copy()
    if (image := texture_of(model, material)) is not None and image.shape[2] >= 3:
        colour[:3] *= image[..., :3].mean((0, 1)) / 255
    return np.clip(colour, 0, 1)


def texture_of(model: mujoco.MjModel, material: int) -> np.ndarray | None:
    """Return the flat texture of a material, (height, width, channels) uint8, the top row first; None without one."""
    if material < 0:
        return None
    number = int(model.mat_texid[material, int(mujoco.mjtTextureRole.mjTEXROLE_RGB)])
    if number < 0:
        return None
    height, width, channels = (int(a[number]) for a in (model.tex_height, model.tex_width, model.tex_nchannel))
    start = int(model.tex_adr[number])
    image = model.tex_data[start : start + height * width * channels].reshape(height, width, channels)
    return image[::-1]  # MuJoCo's rows count from the bottom


def _of(mesh: trimesh.Trimesh, flat: bool = False) -> Shape:
    return Shape(np.asarray(mesh.vertices), np.asarray(mesh.faces), flat)


def _plane(model: mujoco.MjModel, geom: int, size: np.ndarray) -> Shape:
    half = np.where(size[:2] > 0, size[:2], _INFINITE)
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * half
    vertices = np.c_[corners, np.zeros(4)]
    faces, material = np.array([(0, 1, 2), (0, 2, 3)]), int(model.geom_matid[geom])
    image = texture_of(model, material)
    if image is None or int(model.tex_type[model.mat_texid[material, 1]]) != mujoco.mjtTexture.mjTEXTURE_2D:
        return Shape(vertices, faces, True)
    # Repeated per metre, or so often over the whole side; one without bounds has no side.
    per_metre = model.mat_texrepeat[material] / 2
    if not model.mat_texuniform[material]:
        per_metre = np.where(size[:2] > 0, model.mat_texrepeat[material] / (2 * half), per_metre)
    return Shape(vertices, faces, True, corners * per_metre)


def _mesh(model: mujoco.MjModel, mesh: int) -> Shape:
    first, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    vertices = model.mesh_vert[first : first + count]
    start, number = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    faces = model.mesh_face[start : start + number]
    if not model.mesh_texcoordnum[mesh]:
        return Shape(vertices.copy(), faces.copy(), False)
    # A corner of two triangles may lie in two places of the texture: each triangle gets corners of its own.
    texture = int(model.mesh_texcoordadr[mesh]) + model.mesh_facetexcoord[start : start + number].ravel()
    uv = model.mesh_texcoord[texture]
    return Shape(vertices[faces.ravel()], np.arange(3 * number).reshape(-1, 3), False, np.c_[uv[:, 0], 1 - uv[:, 1]])


def _height_field(model: mujoco.MjModel, field: int) -> Shape:
    rows, columns = int(model.hfield_nrow[field]), int(model.hfield_ncol[field])
    start = int(model.hfield_adr[field])
    x, y, top, _ = model.hfield_size[field]
    height = top * model.hfield_data[start : start + rows * columns]
    grid = np.meshgrid(np.linspace(-x, x, columns), np.linspace(-y, y, rows))
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    right, up, across = corner + 1, corner + columns, corner + columns + 1
    faces = np.concatenate([np.c_[corner, right, across], np.c_[corner, across, up]])
    return Shape(np.c_[grid[0].ravel(), grid[1].ravel(), height], faces, False)
