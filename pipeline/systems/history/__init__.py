"""Dynamics that read the past of an episode, by a causal Transformer."""
