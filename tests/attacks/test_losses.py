"""Losses of attacks: by hand, on one point and on many."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from monai_adv import InputError
from monai_adv.attacks import losses
from monai_adv.tasks import Points

LOGITS = torch.tensor([[1.0, 7.0, 2.0, 4.0], [1.0, 7.0, 2.0, 4.0]])


def one_point(logits: torch.Tensor, labels: list[int], rivals: list[int] | None = None) -> Points:
    column = torch.tensor(labels)[:, None]
    aims = None if rivals is None else torch.tensor(rivals)[:, None]
    return Points(logits[:, :, None], column, torch.ones_like(column, dtype=torch.bool), aims)


def test_by_hand() -> None:
    points = one_point(LOGITS, [1, 3], [0, 2])  # the first is right, by 3; the second wrong, by 3
    expected = {
        losses.cross_entropy: F.cross_entropy(LOGITS, torch.tensor([1, 3]), reduction="none"),
        losses.margin: torch.tensor([4.0 - 7.0, 7.0 - 4.0]),
        losses.dlr: torch.tensor([-3.0, 3.0]) / (7 - 2),
        losses.targeted_margin: torch.tensor([1.0 - 7.0, 2.0 - 4.0]),
        losses.targeted_dlr: torch.tensor([-6.0, -2.0]) / (7 - (2 + 1) / 2),
    }
    for loss, values in expected.items():
        torch.testing.assert_close(loss(points, 0.3), values)


def test_the_label_is_masked_also_where_all_other_logits_are_negative() -> None:
    points = one_point(torch.tensor([[-1.0, -5.0, -3.0]]), [0])
    assert losses.margin(points, 0.0).item() == -2  # masking by a factor of 0 would give +1


@given(st.integers(4, 9), st.floats(0.01, 100), st.floats(-50, 50), st.integers(0, 10_000))
def test_dlr_ignores_shift_and_scale_of_the_logits(classes: int, scale: float, shift: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, generator=generator, dtype=torch.float64)
    plain, moved = (one_point(z, [0, 1, 2], [1, 2, 3]) for z in (logits, scale * logits + shift))
    for loss in (losses.dlr, losses.targeted_dlr):
        torch.testing.assert_close(loss(plain, 0.0), loss(moved, 0.0), rtol=1e-5, atol=1e-7)
    assert (losses.dlr(plain, 0.0) >= -1).all()  # the rightest there is, unlike the margin


def test_equal_logits_divide_by_nearly_nothing_and_stay_finite() -> None:
    points = one_point(torch.ones(1, 5), [2], [0])
    assert losses.dlr(points, 0.0).item() == 0
    assert losses.targeted_dlr(points, 0.0).item() == 0


def test_many_points_are_averaged_over_those_that_count() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 6, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (2, 6), generator=generator)
    rivals = (labels + 1) % 5
    valid = torch.tensor([[True, False, True, True, False, True], [False, True, False, False, False, False]])
    points = Points(logits, labels, valid, rivals)
    for loss in (losses.cross_entropy, losses.margin, losses.dlr, losses.targeted_dlr, losses.targeted_margin):
        each = torch.stack(
            [loss(one_point(logits[:, :, i], labels[:, i].tolist(), rivals[:, i].tolist()), 0.0) for i in range(6)],
            1,
        )
        expected = torch.stack([row[counts].mean() for row, counts in zip(each, valid, strict=True)])
        torch.testing.assert_close(loss(points, 0.0), expected)


def test_gradients_move_label_and_rival_against_each_other() -> None:
    logits = LOGITS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(losses.targeted_margin(one_point(logits, [1, 3], [0, 2]), 0.0).sum(), logits)
    assert gradient.tolist() == [[1, -1, 0, 0], [0, 0, 1, -1]]
    (gradient,) = torch.autograd.grad(losses.margin(one_point(logits, [1, 3]), 0.0).sum(), logits)
    assert gradient.tolist() == [[0, -1, 0, 1], [0, 1, 0, -1]]


def test_with_two_classes_margins_are_the_same_and_cross_entropy_is_their_softplus() -> None:
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = one_point(logits, [0, 1, 0, 1], [1, 0, 1, 0])
    torch.testing.assert_close(losses.margin(points, 0.0), losses.targeted_margin(points, 0.0))
    torch.testing.assert_close(losses.cross_entropy(points, 0.0), F.softplus(losses.margin(points, 0.0)))


@pytest.mark.parametrize(
    ("loss", "classes", "says"),
    [
        (losses.dlr, 2, "loss dlr: received '2 classes', allowed is 3 classes or more; use margin."),
        (
            losses.targeted_dlr,
            3,
            "loss targeted_dlr: received '3 classes', allowed is 4 classes or more; use targeted_margin.",
        ),
    ],
)
def test_dlr_says_how_many_classes_it_needs(loss: object, classes: int, says: str) -> None:
    with pytest.raises(InputError) as error:
        loss(one_point(torch.zeros(1, classes), [0], [1]), 0.0)  # type: ignore[operator]
    assert str(error.value) == says


@pytest.mark.parametrize("loss", [losses.targeted_dlr, losses.targeted_margin])
def test_targeted_losses_need_rivals(loss: object) -> None:
    with pytest.raises(InputError) as error:
        loss(one_point(LOGITS, [0, 1]), 0.0)  # type: ignore[operator]
    assert "rivals" in str(error.value)
