"""What MuJoCo keeps of an environment: its textures go where nothing is drawn, all else stays."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

mujoco: Any = pytest.importorskip("mujoco")

BALL = """
<mujoco>
  <asset><texture name="floor" type="2d" builtin="checker" width="300" height="300" rgb1="1 1 1" rgb2="1 0 0"/></asset>
  <worldbody>
    <geom type="plane" size="1 1 1"/>
    <body pos="0 0 1"><freejoint/><geom size="0.1"/></body>
  </worldbody>
</mujoco>
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux gives pages back")
def test_textures_are_given_back_and_nothing_else_changes():
    from pipeline.tasks.physics import drop_textures

    model, whole = (mujoco.MjModel.from_xml_string(BALL) for _ in range(2))
    data, other = mujoco.MjData(model), mujoco.MjData(whole)
    drop_textures(SimpleNamespace(simulator=SimpleNamespace(env=SimpleNamespace(model=model, data=data))))  # type: ignore
    assert whole.tex_data[4096:-4096].any()
    # All but the pages at its ends, which hold other arrays too.
    assert not model.tex_data[4096:-4096].any()
    for name in dir(whole):
        one, same = getattr(model, name, None), getattr(whole, name, None)
        if isinstance(same, np.ndarray) and name != "tex_data":
            np.testing.assert_array_equal(one, same, name)
    for _ in range(100):
        mujoco.mj_step(model, data)
        mujoco.mj_step(whole, other)
    np.testing.assert_array_equal(data.qpos, other.qpos)
