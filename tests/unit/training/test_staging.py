"""A state is copied into buffers that stay, and nothing that happens to it later shows there."""

import torch

from training.staging import Staging

CPU = torch.device("cpu")


def make_state() -> dict[str, dict[str, object]]:
    weight = torch.arange(6.0).reshape(2, 3)
    moments = {"exp_avg": torch.ones(2, 3), "step": torch.tensor(4.0)}
    return {
        "model": {"embedding": weight, "head": weight.detach(), "empty": torch.empty(0, 3)},
        "optimizer": {"state": {"embedding": moments}, "param_groups": [{"lr": 0.5, "betas": (0.9, 0.95)}]},
    }


def test_staging_copy_has_the_values_of_its_time() -> None:
    state, expected = make_state(), make_state()
    copied = Staging(CPU).copy(state)
    for tensor in (state["model"]["embedding"], state["optimizer"]["state"]["embedding"]["step"]):  # type: ignore[index]
        tensor += 1
    torch.testing.assert_close(copied["model"], expected["model"])
    torch.testing.assert_close(copied["optimizer"]["state"], expected["optimizer"]["state"])
    assert copied["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]


def test_staging_copy_again_takes_the_same_buffers_and_tied_weights_have_one() -> None:
    staging, state = Staging(CPU), make_state()
    first = staging.copy(state)["model"]
    state["model"]["embedding"] *= 2  # type: ignore[operator]
    second = staging.copy(state)["model"]
    assert first["embedding"].data_ptr() == second["embedding"].data_ptr() == second["head"].data_ptr()
    torch.testing.assert_close(second["head"], state["model"]["embedding"])


def test_staging_copy_of_a_state_with_other_shapes_takes_other_buffers() -> None:
    staging = Staging(CPU)
    staging.copy({"weight": torch.zeros(2)})
    torch.testing.assert_close(staging.copy({"weight": torch.ones(3)})["weight"], torch.ones(3))
