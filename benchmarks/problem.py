"""Random models, task tables and batches of any size: what measurements, and tests, compute on."""

from __future__ import annotations

import torch

from pipeline import config
from pipeline.model.task_table import TaskTable
from pipeline.model.world_model import WorldModel
from pipeline.shapes import Batch
from pipeline.systems.build import build_model

TINY = config.Model(
    obs_dim=9, action_dim=4, task_dim=7, latent_dim=16, enc_dim=12, num_enc_layers=2, mlp_dim=20, num_q=3,
    num_bins=21, bin_min=-5.0, bin_max=5.0, simnorm_dim=8, log_std_min=-10.0, log_std_max=2.0,
    termination=False,
)  # fmt: skip
LEARNING = config.Learning(
    lr=3e-4, encoder_lr_scale=0.3, grad_clip_norm=20.0, tau=0.01, rho=0.5, consistency_coef=20.0, reward_coef=0.1,
    value_coef=0.1, bc_coef=1.0, online_bc_coef=0.5, prior_coef=1.0, entropy_coef=1e-4, termination_coef=0.7,
    normalize_obs=False, discount_min=0.95, discount_max=0.995,
)  # fmt: skip


def make_model(sizes: config.Model = TINY, seed: int = 0, fill: bool = True) -> WorldModel:
    """Build a model; with `fill` every weight is random, so that no part is idle because it starts at zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_model(sizes)
        if fill:
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, mean=1.0 if parameter.ndim == 1 else 0.0, std=0.2)
    return model


def make_table(sizes: config.Model = TINY, num_tasks: int = 3, num_phrasings: int = 2, seed: int = 0) -> TaskTable:
    """Build a table whose tasks differ in text, real action dims and discount."""
    draw = torch.Generator().manual_seed(seed)
    num_dims = torch.randint(1, sizes.action_dim + 1, (num_tasks, 1), generator=draw)
    return TaskTable(
        tuple(f"task-{i}" for i in range(num_tasks)),
        torch.randn(num_tasks, num_phrasings, sizes.task_dim, generator=draw),
        (torch.arange(sizes.action_dim) < num_dims).float(),
        0.95 + 0.04 * torch.rand(num_tasks, generator=draw),
    )


def make_batch(
    table: TaskTable, sizes: config.Model = TINY, batch_size: int = 6, horizon: int = 3, seed: int = 0
) -> Batch:
    """Build slices with rewards of every size, some that end for good, and experts that differ from what was done."""
    draw = torch.Generator().manual_seed(seed)
    task = torch.randint(len(table.names), (batch_size,), generator=draw)
    action, expert_action = (2 * torch.rand(2, horizon, batch_size, sizes.action_dim, generator=draw) - 1).mul(
        table.action_mask[task]
    )
    return Batch(
        torch.randn(horizon + 1, batch_size, sizes.obs_dim, generator=draw),
        action,
        expert_action,
        3 * torch.randn(horizon, batch_size, generator=draw),
        (torch.rand(horizon, batch_size, generator=draw) < 0.2).to(torch.get_default_dtype()),
        task,
        torch.rand(batch_size, generator=draw),
    )
