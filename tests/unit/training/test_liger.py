"""Where Liger's loss cannot be had it is refused; its numbers, as far as Triton's interpreter shows them, are ours."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import UserError
from configs.schema import LossKernel, TrainingConfig
from tests.unit.training.tiny import make_job
from training.job import JobDevice
from training.liger import check_loss_kernel

ROOT = Path(__file__).parents[3]
# Triton reads the variable when it is imported. Its interpreter has no tanh, which soft caps need.
COMPARISON = """
import torch
from training.liger import sum_cross_entropy
from training.loss import LogitTransform, sum_loss

for scale, has_bias, is_frozen in ((1.0, False, False), (0.5, True, False), (1.0, False, True)):
    hidden, weight, bias = torch.randn(23, 8), torch.randn(50, 8), torch.randn(50) if has_bias else None
    targets = torch.randint(50, (23,))
    learnt = [each.requires_grad_() for each in (hidden, None if is_frozen else weight, bias) if each is not None]
    found = sum_cross_entropy(hidden, weight, bias, targets, scale, None)
    expected = sum_loss(hidden, weight, bias, targets, LogitTransform(scale))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found / 4, learnt), torch.autograd.grad(expected / 4, learnt))
"""


def test_liger_loss_and_gradients_are_those_of_our_own_in_tritons_interpreter() -> None:
    pytest.importorskip("liger_kernel", reason="the extra liger is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    program = [sys.executable, "-c", COMPARISON]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_check_loss_kernel_liger_on_a_cpu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"liger needs student\.device=gpu; set training\.loss_kernel=auto"):
        check_loss_kernel(make_job(tmp_path, num_rows=2, loss_kernel="liger"))


def test_check_loss_kernel_others_run_everywhere(tmp_path: Path) -> None:
    for kernel in (LossKernel.AUTO, LossKernel.CHUNKED):
        job = make_job(tmp_path / kernel, num_rows=2, loss_kernel=kernel)
        check_loss_kernel(job)
        check_loss_kernel(replace(job, device=JobDevice.GPU))


def test_loss_kernel_liger_with_divergence_is_refused() -> None:
    with pytest.raises(ValueError, match=r"knows cross-entropy alone and objective\.kl_weight is 0\.5"):
        TrainingConfig(loss_kernel="liger", objective={"kl_weight": 0.5})
