"""What holds for the tests of training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def no_accelerator() -> Iterator[None]:
    """Accelerate keeps one state per process, which forked ones inherit: forget what other tests made of it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
