"""Liger's fused linear cross-entropy (Hsu et al. 2024) in the place of our own: ``training.loss_kernel: liger``.

Its kernels are Triton's, for GPUs; liger-kernel is an optional extra and imported only when it is asked for. Shapes: D
hidden size, V vocabulary, N loss tokens of the micro-batch.
"""

from importlib.util import find_spec

import torch

from configs.errors import UserError
from configs.schema import LossKernel
from training.job import JobDevice, TrainJob

_IGNORE_INDEX = -100  # no target has it


def check_loss_kernel(job: TrainJob) -> None:
    """Raise a UserError when ``training.loss_kernel`` is liger where it cannot be had."""
    if job.training.loss_kernel is not LossKernel.LIGER:
        return
    if job.device is not JobDevice.GPU:
        raise UserError("training.loss_kernel=liger needs student.device=gpu; set training.loss_kernel=auto")
    if find_spec("liger_kernel") is None:
        raise UserError(
            "training.loss_kernel=liger needs liger-kernel, which is not installed; install the extra liger of "
            "pyproject.toml wherever the student trains, or set training.loss_kernel=auto"
        )


def sum_cross_entropy(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    targets_N: torch.Tensor,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    """Return the summed cross-entropy (float32 scalar) of at least one target.

    Logits are ``scale`` times what the head gives, bent within ±``softcap``. As in our own loss they are computed in
    the dtype of the hidden states, and losses and the head's gradient summed up in float32.
    """
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    if scale != 1.0:  # the kernel knows no scale
        hidden_ND, bias_V = hidden_ND * scale, None if bias_V is None else bias_V * scale
    loss: torch.Tensor = LigerFusedLinearCrossEntropyFunction.apply(
        hidden_ND,
        weight_VD,
        targets_N,
        bias_V,
        None,  # weights of the classes
        _IGNORE_INDEX,
        0.0,  # weight of the squared log-sum-exp
        0.0,  # label smoothing
        "sum",
        softcap,
        False,  # return the squared log-sum-exp
        torch.float32,  # in which the head's gradient is summed up
    )[0]
    return loss
