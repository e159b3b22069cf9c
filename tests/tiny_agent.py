"""A small untrained agent that knows three tasks, and adapters for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from pipeline import config
from pipeline.agent import Agent
from pipeline.language.embeddings import embed
from pipeline.language.encoder import HashedNgrams
from pipeline.model.task_table import TaskTable
from pipeline.systems.build import build_model, task_columns
from pipeline.tasks.spec import TaskSpec

SIZES = config.Model(
    obs_dim=6, action_dim=3, task_dim=16, latent_dim=16, enc_dim=12, num_enc_layers=2, mlp_dim=16, num_q=2,
    num_bins=11, bin_min=-5.0, bin_max=5.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0, termination=False,
)  # fmt: skip
PLANNER = config.Planner(
    horizon=3, iterations=2, num_samples=16, num_policy_samples=4, num_elites=4, min_std=0.05, max_std=2.0,
    temperature=0.5,
)  # fmt: skip
ENCODER = HashedNgrams(16)


def make_spec(name: str, instruction: str, obs_dim: int, action_dim: int) -> TaskSpec:
    return TaskSpec(
        name=name, suite="gymnasium", env_id="tests:tests/None-v0", embodiment="A small body.",
        instructions=(f"{instruction}.", f"{instruction} quickly."), obs_dim=obs_dim, action_dim=action_dim,
        action_repeat=1, episode_length=50, score="return/1000", env_kwargs={"friction": 0.5},
    )  # fmt: skip


SPECS = [make_spec("walk", "walk", 4, 2), make_spec("reach", "reach the goal", 6, 3), make_spec("push", "push", 5, 1)]
NEW = make_spec("pull", "pull", 5, 2)


def embeddings_of(specs: list[TaskSpec]):
    return embed(ENCODER, [spec.name for spec in specs], [[spec.text(0), spec.text(1)] for spec in specs], 2)


def make_agent(seed: int = 0, sizes: config.Model = SIZES) -> Agent:
    torch.manual_seed(seed)
    model = build_model(sizes)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.zeros(3, 3)
    for row, spec in zip(mask, SPECS, strict=True):
        row[: spec.action_dim] = 1
    embeddings = embeddings_of(SPECS)
    discount = torch.tensor([0.9, 0.95, 0.99])
    vectors, columns = torch.from_numpy(embeddings.vectors), task_columns(sizes, len(SPECS))
    table = TaskTable(embeddings.names, vectors, mask, discount, columns=columns)
    return Agent(model, SPECS, embeddings, table, PLANNER)


def obs_for(spec: TaskSpec, num_envs: int | None = None, seed: int = 0) -> np.ndarray:
    shape = (spec.obs_dim,) if num_envs is None else (num_envs, spec.obs_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def adapted(checkpoint: Path, folder: Path, spec: TaskSpec = NEW, seed: int = 1) -> Agent:
    """An agent whose one adapter, for one task, was trained (here: moved at random) and saved."""
    agent = Agent.from_pretrained(checkpoint)
    if spec.name not in agent.tasks:
        agent.add_task(spec, embeddings_of([spec]), 0.97)
    torch.manual_seed(seed)
    agent.create_adapter(spec.name, ["encoder", "policy", "q"], rank=2, alpha=4.0)
    with torch.no_grad():
        for parameter in agent.model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    agent.actor.refresh()
    agent.save_adapter(folder, spec.name)
    return agent


def acts(agent: Agent, spec: TaskSpec, **options) -> np.ndarray:
    """What an agent does in three steps of four environments."""
    agent.reset(4, seed=0)
    told = options or {"task": spec.name}
    return np.stack([agent.act(obs_for(spec, 4, seed), **told) for seed in range(3)])
