"""Who demonstrates: experts, planners, teachers."""

import pipeline.tasks  # noqa: F401  # before MuJoCo is imported: it settles which OpenGL that loads
