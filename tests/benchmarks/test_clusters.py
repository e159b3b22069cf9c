"""How much two clusterings agree."""

from __future__ import annotations

import pytest

from benchmarks.clusters import adjusted_rand


def test_agreement_of_clusterings_is_the_known_one() -> None:
    assert adjusted_rand([0, 0, 1, 1], [1, 1, 0, 0]) == 1
    assert adjusted_rand([0, 0, 1, 1], [0, 0, 1, 2]) == pytest.approx(4 / 7)  # the example of scikit-learn's manual
    assert adjusted_rand([0, 0, 0, 0], [0, 1, 2, 3]) == 0
