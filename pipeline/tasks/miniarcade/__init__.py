"""Small arcade games of our own: a vector of numbers is the whole state, an image only a way to look at it.

Each file holds one game in the same order: constants, state, step, reward, observation, drawing.
"""
