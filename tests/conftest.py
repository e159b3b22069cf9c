"""What holds for every test."""

import os
import signal

import pytest
from hypothesis import settings

# The tensors of tests are tiny: more threads would only wait for each other. Set before torch is imported, and passed
# on to the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Started in the background of a script, a process ignores Ctrl-C and hands that on; the tests of Ctrl-C need it heard.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run: a rare tie of two plans must not fail somebody else's change.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# Files are dealt to the workers one by one: those that take minutes come first, so that none is left alone with them.
_LONGEST = (
    "test_tiny_pipeline.py",
    "test_distribution.py",
    "test_stages_on_images.py",
    "test_killed.py",
    "test_ranks.py",
    "test_without_demos.py",
    "test_browser.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; all else stays in its order."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))
