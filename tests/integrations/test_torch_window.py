"""The loss window on the device."""

import copy
import pickle

import pytest
import torch

from scale_callbacks.integrations.torch import LossWindow


def filled(*losses: float, slots: int = 4) -> LossWindow:
    window = LossWindow(slots=slots)
    for loss in losses:
        window.add(torch.tensor(loss))
    return window


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 13])
def test_mean_of_all_losses_whatever_the_number_of_slots(n: int) -> None:
    window = filled(*map(float, range(n)))
    assert window.compute().item() == (n - 1) / 2
    assert window.totals().tolist() == [sum(range(n)), n, 0]


def test_losses_that_are_not_finite_are_counted_and_do_not_spoil_the_window() -> None:
    nan, inf = float("nan"), float("inf")
    assert filled(1.0, nan, inf, -inf, 3.0, nan).totals().tolist() == [4.0, 2.0, 4.0]


def test_reading_does_not_end_a_window_and_reset_does() -> None:
    window = filled(1.0, 2.0)
    assert window.compute().item() == 1.5
    window.add(torch.tensor(6.0))
    assert window.compute().item() == 3.0
    window.reset()
    window.add(torch.tensor(7.0))
    assert window.totals().tolist() == [7.0, 1.0, 0.0]


def test_loss_changed_in_place_afterwards_keeps_its_value_in_the_window() -> None:
    window, loss = LossWindow(), torch.tensor(1.0)
    window.add(loss)
    loss.fill_(9.0)
    assert window.compute().item() == 1.0


def test_loss_keeps_no_graph_alive() -> None:
    window, weight = LossWindow(), torch.nn.Parameter(torch.tensor(2.0))
    window.add(weight * 3)
    assert not window.totals().requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_any_type_of_number_and_a_loss_of_several_values(dtype: torch.dtype) -> None:
    window = LossWindow()
    window.add(torch.tensor(2, dtype=dtype))
    window.add(torch.tensor([2.0, 6.0]).to(dtype).float())
    assert window.compute().item() == 3.0


def test_pickle_and_deepcopy_carry_the_window_on() -> None:
    window = filled(1.0, 2.0, float("nan"))
    for twin in (pickle.loads(pickle.dumps(window)), copy.deepcopy(window)):
        twin.add(torch.tensor(6.0))
        assert twin.totals().tolist() == [9.0, 3.0, 1.0]
    assert window.totals().tolist() == [3.0, 2.0, 1.0]


def test_restored_window_goes_on_from_its_totals() -> None:
    window = LossWindow()
    window.restore([3.0, 2.0, 1.0])
    window.add(torch.tensor(6.0))
    assert window.totals().tolist() == [9.0, 3.0, 1.0]


def test_torchmetrics_reduction_holds_what_still_lies_in_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_two_ranks(value: torch.Tensor, group: object) -> list[torch.Tensor]:
        return [value, value + 1]

    window = LossWindow(dist_sync_fn=from_two_ranks, distributed_available_fn=lambda: True)
    window.add(torch.tensor(4.0))
    assert window.compute().item() == (4 + 5) / (1 + 2)
    assert window.totals().tolist() == [4.0, 1.0, 0.0]  # the rank's own, once read
