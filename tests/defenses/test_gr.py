"""GR: the gradient of a logistic regression, reductions, gradcheck, finite differences, identities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.gr import PRESETS, GRSettings
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import Classifier
from tests.loss_parts import KINDS, gradients, make, only_the_regulariser, problem, run


def logistic(inputs: int = 3, seed: int = 0) -> tuple[nn.Linear, Batch]:
    """p = sigmoid(w x + b) in double precision."""
    torch.manual_seed(seed)
    images = torch.randn(5, inputs, dtype=torch.float64)
    return nn.Linear(inputs, 1, dtype=torch.float64), Batch(images, torch.tensor([0, 1, 1, 0, 1]))


def only_the_term(**settings: object) -> object:
    """GR of a host loss that is 0: the term alone."""
    return make("gr", ClassificationTask(loss=lambda output, target: output.sum() * 0), **settings)


@pytest.mark.parametrize(("p", "q"), [(2.0, 2.0), (1.0, 1.0), (2.0, 1.0), (3.0, 2.0)])
def test_logistic_regression(p: float, q: float) -> None:
    """grad_x of the cross-entropy is (p - y) w: the term is mean |p - y|^q ||w||_p^q, also in its weight gradient."""
    network, batch = logistic()
    (loss,) = run(only_the_term(p=p, q=q, lam=0.5), network, batch)  # type: ignore[arg-type]
    found = [v.grad.clone() for v in network.parameters()]  # type: ignore[union-attr]
    off = (network(batch.images)[:, 0].sigmoid() - batch.target).abs()
    expected = 0.5 * (off**q).mean() * (network.weight.abs() ** p).sum() ** (q / p)
    assert loss == pytest.approx(expected.item())
    for one, two in zip(found, torch.autograd.grad(expected, list(network.parameters())), strict=True):
        torch.testing.assert_close(one, two)


def test_the_term_does_not_depend_on_the_batch_size() -> None:
    """The trap: the gradient of the mean loss would make the term B times smaller."""
    network, batch = logistic()
    (whole,) = run(only_the_term(), network, batch)  # type: ignore[arg-type]
    alone = [
        run(only_the_term(), network, Batch(batch.images[i : i + 1], batch.target[i : i + 1]))[0]  # type: ignore[arg-type]
        for i in range(5)
    ]
    assert whole == pytest.approx(sum(alone) / 5)


def test_the_weight_gradient_is_that_of_the_term() -> None:
    """Against finite differences in the weights, on a smooth network with a hidden layer."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 3)).double()
    images, target = torch.randn(4, 3, dtype=torch.float64), torch.tensor([0, 2, 1, 1])
    gr = make("gr", ClassificationTask(), lam=2.0)

    def loss(weight: Tensor) -> Tensor:
        class Replaced(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.func.functional_call(network, {"0.weight": weight}, (x,))

        (part,) = gr.losses(Replaced(), Batch(images, target))
        return part.loss

    weight = network[0].weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_lam_0_is_standard_bit_for_bit(kind: str) -> None:
    values, expected = gradients("standard", kind)
    found_values, found = gradients("gr", kind, lam=0)
    assert found_values == values
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("gradient", "cost"), [("exact", 6), ("finite_difference", 7)])
def test_cost(kind: str, gradient: str, cost: int) -> None:
    one, batch = problem(kind)
    gr = make("gr", one.task, gradient=gradient)
    run(gr, one.network, batch)
    assert gr.statistics.passes.in_forwards() == cost * len(batch.images)


@pytest.mark.parametrize("kind", KINDS)
def test_the_term_can_be_minimised(kind: str) -> None:
    one, batch = only_the_regulariser(kind)
    gr = make("gr", one.task)
    optimizer = torch.optim.Adam(one.network.parameters(), 0.01)
    sizes = []
    for _ in range(15):
        optimizer.zero_grad()
        sizes += run(gr, one.network, batch)
        optimizer.step()
    assert sizes[-1] < 0.5 * sizes[0]


def test_channels_that_are_no_intensities_have_no_share() -> None:
    torch.manual_seed(0)
    network, images, target = nn.Linear(2, 2).double(), torch.randn(4, 2).double(), torch.tensor([0, 1, 1, 0])
    task = ClassificationTask(loss=lambda output, target: output.sum() * 0)
    gr = type(make("gr", task))(task, GRSettings(), channels=(1,))
    off = network(images).softmax(1)[:, 1] - target
    expected = (off * (network.weight[1, 1] - network.weight[0, 1])).square().mean()
    assert run(gr, network, Batch(images, target))[0] == pytest.approx(expected.item())
    fd = type(gr)(task, GRSettings(gradient="finite_difference", h=1e-6), channels=(1,))
    assert run(fd, network, Batch(images, target))[0] == pytest.approx(expected.item(), rel=1e-4)


def test_finite_difference_tends_to_the_exact_gradient() -> None:
    network, batch = logistic()
    (exact,) = run(only_the_term(), network, batch)  # type: ignore[arg-type]
    errors = []
    for h in (1e-1, 1e-2, 1e-3):
        (found,) = run(only_the_term(gradient="finite_difference", h=h), network, batch)  # type: ignore[arg-type]
        errors.append(abs(found - exact) / exact)
    assert errors[0] > 5 * errors[1] > 25 * errors[2]  # first order in h


def test_finite_difference_by_hand() -> None:
    """l(x + h v) - l(x) with v = g / ||g||, half of its square over h^2 as TULIP has it."""
    network, batch = logistic()
    (loss,) = run(only_the_term(gradient="finite_difference", h=0.5, lam=0.5), network, batch)  # type: ignore[arg-type]
    sign = torch.where(batch.target == 1, -1.0, 1.0)[:, None]  # p - y is negative for class 1
    direction = sign * network.weight / network.weight.norm()
    task = ClassificationTask()
    losses = [task.sample_loss(network(x), batch.target) for x in (batch.images, batch.images + 0.5 * direction)]
    assert loss == pytest.approx((((losses[1] - losses[0]) / 0.5).square() / 2).mean().item())


def test_the_preset_is_tulip_s_own() -> None:
    """train.py of the authors with the values of its example: ``loss + 0.1 * mean(dl^2) / 2``, step 0.01."""
    network, batch = logistic()
    own = {k: v for k, v in PRESETS["tulip"].items() if not k.startswith("intensity")}
    (loss,) = run(only_the_term(**own), network, batch)  # type: ignore[arg-type]
    x = batch.images.clone().requires_grad_()
    losses = ClassificationTask().sample_loss(network(x), batch.target)
    (dx,) = torch.autograd.grad(losses.mean(), x)
    moved = x.detach() + 1e-2 * dx / dx.norm(dim=1, keepdim=True)
    dl = (ClassificationTask().sample_loss(network(moved), batch.target) - losses) / 1e-2
    assert loss == pytest.approx((0.1 * dl.square().mean() / 2).item())
    assert GRSettings(gradient="finite_difference").h == 1e-2


def test_a_gradient_of_zero_is_no_nan() -> None:
    """An output that does not depend on the image: size 0, and finite weight gradients."""
    network, batch = logistic()
    nn.init.zeros_(network.weight)
    for settings in ({}, {"q": 1.0}, {"gradient": "finite_difference"}, {"gradient": "finite_difference", "q": 1.0}):
        network.zero_grad()
        (loss,) = run(only_the_term(**settings), network, batch)  # type: ignore[arg-type]
        assert loss == 0
        assert all(bool(p.grad.isfinite().all()) for p in network.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("gradient", ["exact", "finite_difference"])
def test_the_network_runs_in_single_precision_under_autocast(gradient: str) -> None:
    """Bit for bit what it is without autocast; half-precision images are single precision for the network."""
    found = []
    for images_dtype, half in ((torch.float32, False), (torch.float32, True), (torch.bfloat16, True)):
        torch.manual_seed(0)
        network, images, target = Classifier(2), torch.randn(4, 1, 8, 8).bfloat16(), torch.tensor([0, 1, 1, 0])
        gr = make("gr", ClassificationTask(), gradient=gradient)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            (part,) = gr.losses(network, Batch(images.to(images_dtype), target))
        part.loss.backward()
        found.append([part.loss.detach(), *(p.grad for p in network.parameters())])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_batch_norm_in_training_mode_couples_samples() -> None:
    """Documented: the gradient of the summed losses for an image holds the neighbours' losses as well."""
    torch.manual_seed(0)
    images, target = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])

    def term(train: bool, scale: float) -> float:
        torch.manual_seed(1)
        network = Classifier(2).train(train)
        neighbours = torch.cat([images[:1], scale * images[1:]])
        with torch.no_grad():
            network.body[1].running_var.fill_(2.0)
        gr = make("gr", ClassificationTask())
        gr._size, sizes = (lambda *given, size=gr._size: sizes.append(size(*given)) or sizes[-1]), []  # type: ignore
        run(gr, network, Batch(neighbours, target))
        return sizes[0][0].item()

    assert term(False, 1.0) == pytest.approx(term(False, 3.0))
    assert term(True, 1.0) != pytest.approx(term(True, 3.0), rel=1e-3)


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="p: received 1.0, allowed is 2 with gradient 'finite_difference'"):
        GRSettings(p=1.0, gradient="finite_difference")
    with pytest.raises(InputError, match="p: received 0.5, allowed is a number >= 1"):
        GRSettings(p=0.5)
    with pytest.raises(InputError, match="h: received 0.0, allowed is a number > 0"):
        GRSettings(h=0.0)
