"""Mazes: what is open, how far it is, where the way goes."""

import numpy as np
import pytest

from pipeline.tasks.mazes import Maze
from pipeline.tasks.miniarcade.point_maze import LAYOUTS

HOOK = """
    #####
    #S..#
    ###.#
    #G..#
    #####"""


def test_the_bottom_left_cell_is_the_origin_and_y_points_up():
    maze = Maze(HOOK, 0.1)
    assert maze.starts.tolist() == [[1, 3]]
    assert maze.goals.tolist() == [[1, 1]]
    assert maze.walls[2].tolist() == [True, True, True, False, True]


def test_the_way_leads_around_the_wall():
    way = Maze(HOOK, 0.1).distances(np.array([1.0, 1.0]))
    assert way.at(np.array([1.0, 1.0])) == pytest.approx(0, abs=0.2)
    # Over (2.6, 1.4) and (2.6, 2.6), the inner corners, a tenth off: 1.65 + 1.2 + 1.65.
    assert way.at(np.array([1.0, 3.0])) == pytest.approx(4.5, rel=0.06)
    assert way.longest >= way.at(np.array([1.0, 3.0])) - 0.5
    assert way.way(np.array([1.0, 3.0]), 0.4)[0] > 0.9
    assert way.way(np.array([3.0, 2.0]), 0.4)[1] < -0.6
    assert way.way(np.array([2.0, 1.0]), 0.4)[0] < -0.9


def test_the_open_floor_is_measured_almost_straight():
    maze = Maze("#######\n#S....#\n#.....#\n#.....#\n#....G#\n#######", 0.1)
    way = maze.distances(np.array([5.0, 1.0]))
    for start in ([1.0, 4.0], [5.0, 4.0], [2.0, 1.5]):
        straight = np.linalg.norm(np.array(start) - [5, 1])
        assert way.at(np.array(start)) == pytest.approx(straight, rel=0.04)


def test_a_body_touches_a_wall_with_its_side():
    maze = Maze(HOOK, 0.1)
    places = np.array([[1.0, 1.0], [0.64, 1.0], [0.66, 1.0], [3.0, 2.0], [2.6, 2.0]])
    assert maze.blocked(places, 0.15).tolist() == [False, True, False, False, True]


def test_starts_and_goals_stay_in_their_cells():
    maze, rng = Maze(HOOK, 0.1), np.random.default_rng(0)
    ends = np.array([maze.draw(rng) for _ in range(50)])
    assert np.abs(ends - [[1, 3], [1, 1]]).max() <= 0.25
    assert len(np.unique(ends[:, 0], axis=0)) == 50


@pytest.mark.parametrize(
    ("drawing", "problem"),
    [
        ("###\n#S#\n#G#\n##", "rows of equal length"),
        ("####\n#SG.\n####", "walls all around"),
        ("####\n#S.#\n####", "a goal G"),
        ("#####\n#S#G#\n#####", "gets from every start to every goal"),
    ],
)
def test_a_wrong_drawing_is_refused(drawing, problem):
    with pytest.raises(ValueError, match=problem):
        Maze(drawing, 0.1)


def test_every_layout_of_the_games_is_sound():
    assert all(Maze(drawing, 0.15) for drawing in LAYOUTS.values())
