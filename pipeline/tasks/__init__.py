"""Simulators and the catalogue of tasks."""

from pipeline.tasks.opengl import settle_backend

settle_backend()  # before any simulator imports MuJoCo
