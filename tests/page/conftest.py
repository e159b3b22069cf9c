"""What several tests of the page need."""

from __future__ import annotations

import contextlib
import io

import pytest

from tests.pixels.conftest import encoder_folder, painter  # noqa: F401


@pytest.fixture
def server():
    """A server of pages on a free port, without what it prints."""
    from pipeline.page.page import serve  # tests are skipped where the extra `play` is not installed

    with contextlib.redirect_stdout(io.StringIO()):
        server = serve("127.0.0.1", None, "test")
        yield server
        server.stop()
