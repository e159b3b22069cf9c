"""What actions and observations of other kinds than one bounded Box become."""

from collections import OrderedDict

import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, flatten

from pipeline.tasks.spaces import Actions, actions_of, layout_of


def act(actions: Actions, values: list[float]):
    """What the environment gets for an agent's action in [-1, 1], scaled as `TaskEnv` does."""
    low, high = actions.low.astype(np.float64), actions.high.astype(np.float64)
    return actions.convert(np.array(values) * (high - low) / 2 + (low + high) / 2)


@pytest.mark.parametrize("space", [Box(-1, 1, (0,)), Box(-1, 1, (3, 0))], ids=str)
def test_actions_of_no_number_are_refused(space: Space):
    with pytest.raises(ValueError, match="lab/None-v0: its actions are .*, of no number at all"):
        actions_of("lab/None-v0", space)


@pytest.mark.parametrize(
    "space",
    [
        Box(0, 10, (1,), np.int64),
        Box(-1, 1, (1,), np.int8),
        Box(0, 255, (1,), np.uint8),
        Box(0, 1, (1,), np.bool_),
        Box(-128, 127, (1,), np.int8),
    ],
    ids=str,
)
def test_integers_are_even_steps_of_the_range(space: Box):
    actions = actions_of("it", space)
    values = np.array([act(actions, [at]) for at in np.linspace(-1, 1, 25601)])
    assert values.dtype == space.dtype
    assert all(space.contains(value) for value in values[::800])
    found, counts = np.unique(values, return_counts=True)
    assert found.tolist() == list(range(int(space.low[0]), int(space.high[0]) + 1))
    assert counts.min() > 0.97 * counts.max()
    assert (np.diff(values.ravel().astype(int)) >= 0).all()
    assert "divided evenly" in actions.text


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_keep_to_their_bounds_at_the_border(dtype: type):
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = np.sort(rng.normal(size=(2, 3)).astype(dtype), axis=0)
        space = Box(low, high, dtype=dtype)
        actions = actions_of("it", space)
        for end in (-1.0, 1.0):
            assert space.contains(act(actions, [end] * 3))


def test_a_choice_is_the_largest_of_its_numbers():
    actions = actions_of("it", Discrete(3, start=5))
    assert (actions.low.tolist(), actions.high.tolist()) == ([-1] * 3, [1] * 3)
    assert [act(actions, values) for values in ([1, 0, 0], [-1, -0.5, -0.9], [0, 0, 0.1], [0, 0, 0])] == [5, 6, 7, 5]
    assert Discrete(3, start=5).contains(act(actions, [0, 1, 0]))
    assert actions.text.endswith("the largest of 3 numbers chooses")


def test_several_choices_are_made_by_group():
    space = MultiDiscrete([[3, 2], [1, 2]])
    actions = actions_of("it", space)
    assert actions.low.size == 8
    action = act(actions, [0, 0, 1, -1, -0.5, 0.3, 0.2, 0.1])
    assert action.tolist() == [[2, 1], [0, 0]]
    assert space.contains(action)
    assert "each group of 3 + 2 + 1 + 2 numbers" in actions.text
    shifted = MultiDiscrete([2, 2], start=[1, -1])
    assert act(actions_of("it", shifted), [0, 1, 1, 0]).tolist() == [2, -1]


def test_a_switch_is_on_above_zero():
    for space in (MultiBinary(4), MultiBinary([2, 2])):
        action = act(actions_of("it", space), [0.1, -0.1, 0, 1])
        assert action.ravel().tolist() == [1, 0, 0, 1]
        assert space.contains(action)


def test_limits_of_the_task_file_bound_what_has_none():
    space = Box(-np.inf, np.inf, (2,))
    actions = actions_of("it", space, (-2.0, (4.0, 6.0)))
    assert act(actions, [1, 1]).tolist() == [4, 6]
    assert act(actions, [-1, 0]).tolist() == [-2, 2]
    narrower = actions_of("it", Box(-1, 1, (2,)), (-0.5, 0.5))
    assert act(narrower, [1, -1]).tolist() == [0.5, -0.5]
    with pytest.raises(ValueError, match="action_bounds from -2 to 2 go beyond its own actions"):
        actions_of("it", Box(-1, np.inf, (2,)), (-2.0, 2.0))
    with pytest.raises(ValueError, match="`action_bounds` are for a Box"):
        actions_of("it", Discrete(3), (-2.0, 2.0))


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_whole_numbers_stay_within_the_limits_of_the_task_file(dtype: type):
    space = Box(0, 9, (1,), dtype)
    actions = actions_of("it", space, (0.5, 2.5))
    values = [int(act(actions, [at])[0]) for at in np.linspace(-1, 1, 101)]
    assert set(values) == {1, 2}
    assert abs(values.count(1) - 50) <= 1
    assert [int(act(actions_of("it", space, (0.5, 1.5)), [at])[0]) for at in (-1, 0, 1)] == [1, 1, 1]
    with pytest.raises(ValueError, match=r"action_bounds from 1\.2 to 1\.8 leave no whole number"):
        actions_of("it", space, (1.2, 1.8))


@pytest.mark.parametrize(
    ("dtype", "limit"), [(np.float16, 1e5), (np.float32, 1e39), (np.float64, 1e39), (np.int64, 2.0**60)]
)
def test_limits_of_the_task_file_are_numbers_of_the_space(dtype: type, limit: float):
    ends = (-np.inf, np.inf) if dtype != np.int64 else (-(2**62), 2**62)
    with pytest.raises(ValueError, match="reach the largest number of its actions"):
        actions_of("it", Box(*ends, (1,), dtype), (-limit, limit))


ONE = Box(-9, 9, (1,))


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (Box(-1, 1, (2, 3)), "Box (2, 3)"),
        (Discrete(16), "Discrete(16), as 16 numbers"),
        (Dict({"b": ONE, "a": Box(-9, 9, (2, 2))}), "Dict, in this order: a 0-3, b 4"),
        (Dict(OrderedDict([("b", ONE), ("a", ONE)])), "Dict, in this order: b 0, a 1"),
        (Tuple([ONE, Dict({"k": ONE, "n": Discrete(3)})]), "Tuple, in this order: 0 0, 1.k 1, 1.n 2-4"),
        (Dict({"on": MultiBinary(2), "mode": MultiDiscrete([2, 3])}), "Dict, in this order: mode 0-4, on 5-6"),
    ],
)
def test_observations_are_laid_out_in_the_order_that_is_said(space: Space, expected: str):
    assert layout_of("it", space) == expected
    if isinstance(space, Dict) and "a" in space.spaces:
        sample = {"a": np.full(space["a"].shape, 1.0), "b": np.array([2.0])}
        flat = np.asarray(flatten(space, sample)).tolist()
        assert (flat[0] == 1) == expected.startswith("Dict, in this order: a")
