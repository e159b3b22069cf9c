"""How learning and acting are computed."""

from __future__ import annotations

import torch

from pipeline import config
from pipeline.model.compute import Compute, choose


def compute(runtime: config.Runtime, device: torch.device) -> tuple[Compute, Compute]:
    """Return how learning and how acting are computed.

    Raises:
        ValueError: this machine lacks what `runtime` asks for.
    """
    learning = choose(runtime.matmul, runtime.compile, device)
    return learning, learning._replace(bfloat16=runtime.plan_products == "bfloat16")
