"""ARFL: the feature term by hand, what it does not depend on, the hook, and the label-aware variant of our own."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv import InputError
from monai_adv.defenses import METHODS, Batch
from monai_adv.defenses.arfl import LayerOutput, feature_term, label_codes
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import Classifier
from tests.loss_parts import gradients, make, problem, run

ATTACK = {"eps": 0.2, "steps": 2}
CLASSES = ("2 classes", "9 classes")


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Perceptron(nn.Module):
    """Two moons: 2-4-4-1, the features are the penultimate layer before its activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.penultimate, self.last = nn.Linear(2, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.penultimate(F.relu(self.first(x))), inplace=True))


def moons() -> tuple[Perceptron, Batch]:
    torch.manual_seed(0)
    return Perceptron(), Batch(torch.randn(6, 2), torch.tensor([0, 1, 1, 0, 1, 0]))


def test_the_term_by_hand() -> None:
    """Mean over channels and voxels of -sigmoid(|f|)."""
    features = torch.tensor([[[[1.0, -2.0]], [[0.0, 3.0]]]])  # (1, 2, 1, 2)
    expected = -(sigmoid(1) + sigmoid(2) + 0.5 + sigmoid(3)) / 4
    assert float(feature_term(features)) == pytest.approx(expected)
    codes = torch.tensor([[1, -1]])
    expected = -(sigmoid(1) + sigmoid(-2) + 0.5 + sigmoid(-3)) / 4
    assert float(feature_term(features, codes)) == pytest.approx(expected)


def test_gradcheck() -> None:
    features = torch.tensor([[[0.5, -2.0], [1.5, 0.7]]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(feature_term, features)
    codes = torch.tensor([[1, -1]])
    assert torch.autograd.gradcheck(lambda f: feature_term(f, codes), features)


def test_range() -> None:
    """Between -1 and -1/2; half precision does not round it to -1."""
    features = torch.linspace(-9, 9, 40).view(4, 10)
    assert bool(((feature_term(features) <= -0.5) & (feature_term(features) > -1)).all())
    assert feature_term(features.half()).dtype == torch.float32
    assert feature_term(torch.zeros(2, 3)).tolist() == [-0.5, -0.5]


def test_class_0_has_a_gradient() -> None:
    """With labels coded 0 and 1 the term of class 0 would be the constant -1/2."""
    network, batch = moons()
    layer = LayerOutput("penultimate")
    with layer.of(network):
        network(batch.images)
    features = layer.value()
    (gradient,) = torch.autograd.grad(feature_term(features).sum(), features)
    assert bool((gradient[batch.target == 0] != 0).all())
    wrong = -(features * batch.target[:, None]).abs().sigmoid().flatten(1).mean(1)
    (gradient,) = torch.autograd.grad(wrong.sum(), features)
    assert bool((gradient[batch.target == 0] == 0).all())


@pytest.mark.parametrize("correlation", ["paper", "label_aware"])
def test_only_the_variant_of_our_own_sees_the_labels(correlation: str) -> None:
    """The loss without its cross-entropy, with labels and with permuted labels."""
    network, batch = moons()

    def term(target: Tensor) -> float:
        task = ClassificationTask(loss=lambda output, target: output.sum() * 0)
        arfl = make("arfl", task, r=1.0, lam=2.0, feature_layer="penultimate", correlation=correlation)
        (loss,) = run(arfl, network, Batch(batch.images, target))
        return loss

    same = term(batch.target) == term(1 - batch.target)
    assert same == (correlation == "paper")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("mix", ["loss", "batch"])
def test_lam_0_is_dual_bit_for_bit(kind: str, mix: str) -> None:
    dual_values, dual = gradients("dual", kind, r=0.5, mix=mix, **ATTACK)
    values, arfl = gradients("arfl", kind, r=0.5, mix=mix, lam=0, **ATTACK)
    assert values == dual_values
    assert all(torch.equal(a, b) for a, b in zip(arfl, dual, strict=True))


@pytest.mark.parametrize(("sign", "share"), [(1, 1.0), (-1, -1.0)])
def test_the_parts_are_those_of_dual_plus_the_term(sign: int, share: float) -> None:
    """r (CE + lam L_rob) on clean images, (1 - r) (CE +- lam L_rob) on attacked ones: same attack, same term."""
    network, batch = moons()
    both = {"r": 0.25, "norm": "linf", "eps": 0.1, "steps": 1, "relative_step": 1.0, "start": "clean"}
    dual = make("dual", ClassificationTask(), **both)
    arfl = make("arfl", ClassificationTask(), lam=3.0, feature_layer="penultimate", adversarial_sign=sign, **both)

    def term(images: Tensor) -> float:
        return feature_term(network.penultimate(network.first(images).relu())).mean().item()

    noisy, _, _ = dual.attack(network, batch, dual.settings.ascent())
    assert not torch.equal(noisy, batch.images)
    clean_part, noisy_part = run(dual, network, batch)
    expected = [clean_part + 0.25 * 3 * term(batch.images), noisy_part + 0.75 * 3 * share * term(noisy)]
    assert run(arfl, network, batch) == pytest.approx(expected)


def test_the_sign_in_a_mixed_batch_is_that_of_each_sample() -> None:
    network, batch = moons()
    off = {"eps": 0.0, "mix": "batch", "r": 0.5, "feature_layer": "penultimate"}
    (dual,) = run(make("dual", ClassificationTask(), eps=0.0, mix="batch", r=0.5), network, batch)
    (plus,) = run(make("arfl", ClassificationTask(), lam=1.0, **off), network, batch)
    (minus,) = run(make("arfl", ClassificationTask(), lam=1.0, adversarial_sign=-1, **off), network, batch)
    term = feature_term(network.penultimate(network.first(batch.images).relu()))
    assert plus - dual == pytest.approx(term.mean().item(), abs=1e-6)
    clean = make("dual", ClassificationTask(), mix="batch", r=0.5)._stays_clean(batch)
    assert minus - dual == pytest.approx((torch.where(clean, 1, -1) * term).mean().item(), abs=1e-6)


def test_an_activation_in_place_does_not_change_the_features() -> None:
    network, batch = moons()
    layer = LayerOutput("penultimate")
    with layer.of(network):
        network(batch.images)
    features = layer.value()
    assert bool((features < 0).any())
    assert torch.equal(features, network.penultimate(network.first(batch.images).relu()))


# ------------------------------------------------------------------ the layer


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_last_convolution_that_runs_is_found(dims: int) -> None:
    """Not the last one in the order of definition, nor one that does not run."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]

    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last, self.first, self.unused = nn.Linear(5, 2), conv(3, 5, 1), conv(1, 3, 1), conv(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.last(self.first(x)).flatten(2).mean(2))

    network, images = Backwards(), torch.randn(2, 1, *[4] * dims)
    layer = LayerOutput()
    for _ in range(2):  # found, then known
        with layer.of(network):
            network(images)
        assert torch.equal(layer.value(), network.last(network.first(images)))
        assert layer.name == "last"


def hooks(network: nn.Module) -> int:
    return sum(len(m._forward_hooks) for m in network.modules())


@pytest.mark.parametrize("name", [None, "body.3"])
def test_the_hook_is_gone_also_after_an_exception(name: str | None) -> None:
    network = Classifier(2)
    layer = LayerOutput(name)
    with layer.of(network):
        assert hooks(network) > 0
    assert hooks(network) == 0
    with pytest.raises(RuntimeError, match="channels"), layer.of(network):
        network(torch.randn(2, 3, 8, 8))
    assert hooks(network) == 0
    arfl = make("arfl", ClassificationTask(), feature_layer=name)
    with pytest.raises(RuntimeError, match="channels"):
        run(arfl, network, Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])))
    assert hooks(network) == 0


def test_the_attack_runs_without_hooks() -> None:
    """The features of a training forward only: the attack's passes must neither keep nor replace them."""
    one, batch = problem("2 classes")
    seen: list[tuple[bool, int]] = []
    head = one.network.head
    head.register_forward_pre_hook(lambda module, inputs: seen.append((one.network.training, hooks(one.network))))
    run(make("arfl", one.task, lam=1.0, feature_layer="body.3", **ATTACK), one.network, batch)
    assert seen == [(True, 1), (False, 0), (False, 0), (True, 1)]


def test_a_network_in_ddp_and_the_bare_one_give_the_same_features(tmp_path: object) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        values = []
        for wrap in (False, True):
            one, batch = problem("9 classes")
            network = DistributedDataParallel(one.network) if wrap else one.network
            values.append(run(make("arfl", one.task, lam=1.0, feature_layer="body.3", **ATTACK), network, batch))
        assert values[0] == values[1]
    finally:
        torch.distributed.destroy_process_group()


def test_a_perceptron_needs_the_name_of_its_layer() -> None:
    network, batch = moons()
    with pytest.raises(InputError, match="feature_layer: received None, .* this network has no convolution"):
        run(make("arfl", ClassificationTask()), network, batch)
    with pytest.raises(InputError, match="feature_layer: received 'penultimat', .* did you mean 'penultimate'"):
        run(make("arfl", ClassificationTask(), feature_layer="penultimat"), network, batch)


def test_a_layer_that_does_not_run_or_returns_no_tensor() -> None:
    network, batch = moons()
    network.spare = nn.Conv2d(1, 1, 1)
    for name in ("spare", None):
        with pytest.raises(InputError, match="a layer that the network runs"):
            run(make("arfl", ClassificationTask(), feature_layer=name), network, batch)

    class Several(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return (super().forward(x),)  # type: ignore[return-value]

    network.last = Several(4, 1)
    with pytest.raises(InputError, match="a layer that returns one tensor"):
        run(make("arfl", ClassificationTask(), feature_layer="last"), network, batch)
    assert hooks(network) == 0


# ------------------------------------------------------------------ the variant of our own


def test_codes_of_two_classes_are_the_papers() -> None:
    assert label_codes(torch.tensor([1, 0]), 2, 3).tolist() == [[1, 1, 1], [-1, -1, -1]]


def test_codes_of_more_classes_deal_out_the_channels() -> None:
    assert label_codes(torch.tensor([0, 2]), 3, 5).tolist() == [[1, -1, -1, 1, -1], [-1, -1, 1, -1, -1]]
    with pytest.raises(InputError, match="a layer with 2 channels', allowed is one with at least 3"):
        label_codes(torch.tensor([0]), 3, 2)


@pytest.mark.parametrize("labels", [[0, 1, 1, 0, 1, 0], [2, 0, 1, 2, 1, 0]])
def test_the_label_aware_term_correlates_features_with_labels(labels: list[int]) -> None:
    """Gradient descent on it alone makes f y positive everywhere; the paper's term leaves the signs as they are."""
    torch.manual_seed(0)
    start = torch.randn(6, 6)
    codes = label_codes(torch.tensor(labels), max(labels) + 1, 6)
    for given, all_positive in ((codes, True), (None, False)):
        features = start.clone().requires_grad_()
        for _ in range(200):
            (gradient,) = torch.autograd.grad(feature_term(features, given).sum(), features)
            features = (features - gradient).detach().requires_grad_()
        assert bool((features * codes > 0).all()) == all_positive
        assert all_positive or torch.equal(features.sign(), start.sign())


NOT_FOR = (
    "method: received 'ARFL for segmentation', .*not marked 'not for segmentation' in .* the one label of that image"
)


def test_segmentation_is_refused_with_the_reason() -> None:
    with pytest.raises(InputError, match=NOT_FOR):
        METHODS["arfl"].check_task("segmentation")
    one, batch = problem("segmentation 2D")
    with pytest.raises(InputError, match="several labels per sample"):
        run(make("arfl", one.task, correlation="label_aware"), one.network, batch)
