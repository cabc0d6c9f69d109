"""The loss window on the device."""

import copy
import pickle
from typing import Any

import pytest
import torch

from scale_callbacks.integrations import _window
from scale_callbacks.integrations.torch import LossWindow


@pytest.fixture(autouse=True, params=["at hand", "to be waited for"])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "to be waited for":  # the CPU stands for any other device
        monkeypatch.setattr(_window, "AT_HAND", frozenset())


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
    window = LossWindow()
    window.add(torch.tensor(1e300, dtype=torch.float64))  # more than a slot can hold
    assert window.totals().tolist() == [0.0, 0.0, 1.0]


def test_losses_whose_sum_overflows_are_finite_each() -> None:
    assert filled(3e38, 3e38, 1.0).totals().tolist() == [float("inf"), 3.0, 0.0]


@pytest.mark.parametrize("slots", [4, 64])
def test_both_kinds_of_device_add_up_to_the_same_bit(slots: int, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = torch.randn(100, generator=torch.Generator().manual_seed(0)) ** 5
    totals = []
    for kinds in (frozenset(), frozenset({"cpu"})):
        monkeypatch.setattr(_window, "AT_HAND", kinds)
        window = LossWindow(slots=slots)
        for loss in losses:
            window.add(loss)
        totals.append(window.totals().tolist())
    assert totals[0] == totals[1]


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


# --- windows that are closed, and read later


@pytest.mark.parametrize("counts", [(3, 3, 3), (0, 2, 0), (64, 64, 64), (30, 40, 50, 1), (200, 7, 129), ()])
@pytest.mark.parametrize("slots", [4, 64])
def test_closed_windows_hold_to_the_last_bit_what_each_would_have_told(counts: Any, slots: int) -> None:
    draw = torch.Generator().manual_seed(0)
    closing, asked = LossWindow(slots=slots), []
    for count in counts:
        alone = LossWindow(slots=slots)
        for loss in torch.randn(count, generator=draw) ** 5:
            loss = loss if loss > -1.0 else loss / 0.0
            closing.add(loss)
            alone.add(loss)
        closing.close()
        asked.append(alone.totals().tolist())
    closing.add(torch.tensor(5.0))
    assert closing.closed().tolist() == asked
    assert closing.closed().tolist() == []
    assert closing.totals().tolist() == [5.0, 1.0, 0.0]


def test_mean_is_that_of_the_window_at_hand() -> None:
    window = filled(1.0, 2.0)
    assert window.compute().item() == 1.5
    window.close()
    window.add(torch.tensor(6.0))
    assert window.compute().item() == 6.0
    assert window.closed().tolist() == [[3.0, 2.0, 0.0]]


def test_reset_forgets_closed_windows_and_pickle_carries_them_on() -> None:
    window = filled(1.0, 2.0)
    window.close()
    twin = pickle.loads(pickle.dumps(window))
    window.reset()
    assert window.closed().tolist() == []
    assert twin.closed().tolist() == [[3.0, 2.0, 0.0]]
