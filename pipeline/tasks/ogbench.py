"""Point and ant mazes, a running ant and an ant with a ball, on OGBench's bodies, as a `Simulator`.

Bodies, motors and time steps are OGBench's; mazes, observations and rewards are ours. Episodes never terminate: who
reaches the goal has to stay there until the last step. A cell of a maze is 4 m wide, as in OGBench.

`point/<maze>`  Action: velocity (x, y). Observation (4): place from the middle of the maze (x, y), to the goal (x, y), in m.
`ant/<maze>`    Action: torques of the eight joints. Observation (31): the ant's 15 coordinates (x and y from the middle of
                the maze) and 14 velocities, to the goal (x, y).
    Reward of both: minus the length of the way that is left, as a part of the longest in the maze, so in [-1, 0], which
    is the range of OGBench's own reward; 0 at the goal. Success: within 1 m of the goal (point), 0.5 m (ant).
`ant/run`       Run along a direction that changes every 100 steps. Observation (31): 13 coordinates without x and y, 14
                velocities, the direction (x, y), and how fast the ant moves along and across it. Reward: metres moved
                along the direction, in a step of 0.1 s; about 0.25 at full speed.
`ant/ball`      Push the ball to the goal. Observation (44): 13 coordinates of the ant without x and y and 5 of the ball
                (height and orientation), 20 velocities, from ant to ball and from ball to goal (x, y), and 2 zeros.
                Reward: 25 per metre that the ball nears the goal, 10 per metre that the ant nears the ball, OGBench's
                own. Success: the ball is within 0.5 m of the goal.
"""
