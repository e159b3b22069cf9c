"""The task file, and how its teacher is trained."""
