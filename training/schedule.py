"""Learning rate as a pure function of the step, and the optimiser that uses it."""

import math

import torch

from configs.schema import OptimizerConfig, Schedule


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Return the rate of step ``step`` (from 0) of ``num_steps``.

    Linear warm-up reaches the peak with the last warm-up step. ``wsd`` is warm-up-stable-decay (Hu et al. 2024,
    MiniCPM) with a linear decay; it and ``cosine`` reach the minimum with the last step.
    """
    warmup_steps = round(config.warmup_ratio * num_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    match config.schedule:
        case Schedule.CONSTANT:
            return config.learning_rate
        case Schedule.COSINE:
            decay_steps = num_steps - warmup_steps
            part = min(1.0, (step + 1 - warmup_steps) / decay_steps)
            shape = 0.5 * (1.0 + math.cos(math.pi * part))
        case Schedule.WSD:
            decay_steps = min(round(config.decay_ratio * num_steps), num_steps - warmup_steps)
            left = num_steps - 1 - step
            shape = 1.0 if left >= decay_steps else left / decay_steps
    floor = config.min_learning_rate_ratio
    return config.learning_rate * (floor + (1.0 - floor) * shape)


def build_optimizer(model: torch.nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Return AdamW over the parameters of ``model``, with weight decay on matrices and none on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
