"""The task files that Eft finds by the entry point in pyproject.toml."""
