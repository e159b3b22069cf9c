"""MuJoCo tasks as arrays: many copies stepped together."""

import pipeline.tasks  # noqa: F401  # before MuJoCo is imported: it settles which OpenGL that loads
