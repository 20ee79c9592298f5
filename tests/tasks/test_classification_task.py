"""Classification: margins, correctness, layouts of output and target."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from monai_adv import InputError
from monai_adv.attacks import losses
from monai_adv.tasks import ClassificationTask

TASK = ClassificationTask()


def test_margin_by_hand() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.5], [1.0, 4.0, 2.5], [-3.0, -1.0, -2.0]])
    target = torch.tensor([1, 2, 1])
    torch.testing.assert_close(TASK.margin(logits, target), torch.tensor([1.5, -1.5, 1.0]))
    assert TASK.correct(logits, target).tolist() == [True, False, True]
    assert TASK.scorable(target).tolist() == [True] * 3
    assert TASK.lowest_margin == -torch.inf


@given(st.integers(2, 7), st.integers(0, 10_000))
def test_margin_and_correctness_agree(classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(20, classes, generator=generator)
    target = torch.randint(classes, (20,), generator=generator)
    assert torch.equal(TASK.margin(logits, target) > 0, TASK.correct(logits, target))
    assert torch.equal(TASK.correct(logits, target), logits.argmax(1) == target)
    points = TASK.points(logits, target)
    torch.testing.assert_close(losses.margin(points, 0.0), -TASK.margin(logits, target))


def test_a_tie_goes_to_the_first_class() -> None:
    logits = torch.tensor([[2.0, 2.0], [2.0, 2.0]])
    target = torch.tensor([0, 1])
    assert TASK.margin(logits, target).tolist() == [0, 0]
    assert TASK.correct(logits, target).tolist() == [True, False]


@pytest.mark.parametrize("layout", ["(B, 1)", "(B,)"])
def test_a_single_logit_is_two_logits_whose_softmax_is_its_sigmoid(layout: str) -> None:
    z = torch.tensor([1.5, -0.5, 2.0], dtype=torch.float64)
    target = torch.tensor([1, 1, 0])
    output = z[:, None] if layout == "(B, 1)" else z
    torch.testing.assert_close(TASK.logits(output).softmax(1)[:, 1], z.sigmoid())
    expected = F.binary_cross_entropy_with_logits(z, target.double(), reduction="none")
    torch.testing.assert_close(TASK.sample_loss(output, target), expected)
    torch.testing.assert_close(TASK.margin(output, target), torch.tensor([1.5, -0.5, -2.0], dtype=torch.float64))
    assert TASK.correct(output, target).tolist() == [True, False, False]


@pytest.mark.parametrize(
    "target",
    [
        torch.tensor([2, 0]),
        torch.tensor([[2], [0]]),
        torch.tensor([2.0, 0.0]),
        torch.tensor([2, 0], dtype=torch.uint8),
        torch.tensor([[0, 0, 1], [1, 0, 0]]),
        torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]),
        [torch.tensor([2, 0])],
    ],
)
def test_layouts_of_a_target_mean_the_same(target: torch.Tensor) -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [3.0, 0.0, 0.0]])
    TASK.check(logits, target)
    torch.testing.assert_close(TASK.margin(logits, target), torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(TASK.training_loss(logits, target), F.cross_entropy(logits, torch.tensor([2, 0])))


def test_a_list_of_outputs_is_judged_by_the_first() -> None:
    first, other = torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0]])
    target = torch.tensor([1])
    assert TASK.margin([first, other], target).item() == 1
    assert TASK.correct([first, other], target).item()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_output_that_is_not_finite_is_wrong(bad: float) -> None:
    logits = torch.tensor([[5.0, bad, 0.0], [5.0, 1.0, 0.0]])
    target = torch.tensor([0, 0])
    assert TASK.correct(logits, target).tolist() == [False, True]
    assert TASK.margin(logits, target).tolist() == [-torch.inf, 4.0]


def test_half_precision_is_judged_in_single() -> None:
    logits = torch.tensor([[60000.0, -60000.0]], dtype=torch.float16)
    target = torch.tensor([0])
    assert TASK.margin(logits, target).item() == 120000  # beyond the largest half
    assert TASK.sample_loss(logits, target).dtype == torch.float32


def test_sample_loss_does_not_couple_samples() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 0])
    (gradient,) = torch.autograd.grad(TASK.sample_loss(logits, target)[2], logits)
    assert gradient[[0, 1, 3, 4]].eq(0).all()
    assert gradient[2].ne(0).all()


def test_the_host_loss_is_passed_through() -> None:
    task = ClassificationTask(loss=lambda output, target: output.sum() * 0 + 7)
    assert task.training_loss(torch.zeros(1, 2), torch.tensor([0])).item() == 7


@pytest.mark.parametrize(
    ("output", "target", "says"),
    [
        (torch.zeros(2, 3, 4), torch.tensor([0, 1]), "output: received (2, 3, 4)"),
        (torch.zeros(2, 3), torch.zeros(2, 4), "target: received (2, 4)"),
    ],
)
def test_other_shapes_are_refused(output: torch.Tensor, target: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError) as error:
        TASK.margin(output, target)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (torch.tensor([0, 3]), "whole numbers from 0 to 2"),
        (torch.tensor([-1, 0]), "whole numbers from 0 to 2"),
        (torch.tensor([0.5, 1.0]), "whole numbers from 0 to 2"),
        (torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]), "soft labels"),
        (torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), "soft labels"),
    ],
)
def test_check_refuses_labels_that_no_class_has(target: torch.Tensor, says: str) -> None:
    with pytest.raises(InputError) as error:
        TASK.check(torch.zeros(2, 3), target)
    assert says in str(error.value)
