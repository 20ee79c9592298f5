"""Certificates: closed forms of linear and constant models, coverage, brute force, and an attack inside the radius."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from scipy import stats
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks import PGD
from monai_adv.certificates import (
    NO_CLASS,
    Certification,
    SmoothedModel,
    certified_dice,
    certified_region_dice,
    certified_score,
    certify_classes,
    certify_labels,
)
from monai_adv.certificates.bounds import holm, least_draws, lower_bound
from monai_adv.tasks import SegmentationTask
from tests.linear_classifier import problem
from tests.voxel_networks import Sign

# ------------------------------------------------------------------ classification


def test_radius_of_a_linear_classifier_tends_to_its_distance() -> None:
    """Of two classes the smoothed probability is ``Phi(d / sigma)``, so that R is the distance d, from below."""
    network, images, labels = problem(2, (1, 3, 3), count=40)
    distance = network.distances(images, labels, "l2").amin(1)
    settings = Certification(sigma=float(distance.median()), n=20_000, inputs_per_pass=8000)
    found = certify_classes(network, images, settings)
    # Certain draws end at sigma * Phi^-1(alpha ** (1 / n)): beyond it no distance can be told.
    near = (distance > 0.2 * settings.sigma) & (distance < 2 * settings.sigma)
    assert near.sum() > 20
    assert torch.equal(found.label[near], labels[near])
    assert (found.radius <= distance)[near].all()
    assert (found.radius > 0.85 * distance)[near & (distance > 0.5 * settings.sigma)].all()


def test_lower_bound_is_scipys() -> None:
    counts = np.array([0, 1, 50, 99, 100])
    expected = [stats.binomtest(int(k), 100, alternative="greater").proportion_ci(1 - 0.01).low for k in counts]
    assert np.allclose(lower_bound(counts, 100, 0.01), expected, rtol=1e-12)


def test_a_constant_classifier_never_abstains_and_n_bounds_its_radius() -> None:
    network = nn.Linear(2, 3)
    with torch.no_grad():
        network.weight.zero_()
    found = certify_classes(network, torch.randn(5, 2), Certification(sigma=0.25, n=50, alpha=0.01))
    assert (found.label == network.bias.argmax()).all()
    assert np.allclose(found.radius, 0.25 * stats.norm.ppf(0.01 ** (1 / 50)))


def test_what_noise_makes_a_coin_abstains() -> None:
    """A stripe pattern finer than the noise: half of the draws each."""

    class Stripes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            wave = torch.sin(1000 * x)
            return torch.cat([wave, -wave], 1)

    found = certify_classes(Stripes(), torch.linspace(0, 1, 20)[:, None], Certification(sigma=0.5, n=500))
    assert (found.label == NO_CLASS).all()
    assert (found.radius == 0).all()
    assert not found.holds(torch.zeros(20), 0.0).any()  # abstaining counts as wrong


def test_coverage() -> None:
    """The closed-form attack crosses the boundary at distance d: it beats R in at most alpha of 2000 certificates."""
    at, sigma, alpha, count = 0.3, 0.5, 0.1, 2000
    images = torch.full((count, 1), at, dtype=torch.float64) + 0.2
    settings = Certification(sigma, n0=10, n=60, alpha=alpha, inputs_per_pass=60_000)
    found = certify_classes(Sign(at).double(), images, settings)
    beaten = int((found.radius > 0.2).sum())
    assert 0 < beaten <= stats.binom.ppf(0.999, count, alpha)


def test_one_logit_is_two_classes() -> None:
    """As the difference of two."""
    two, images, _ = problem(2, (1, 4), count=8)
    one = nn.Sequential(nn.Flatten(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        one[1].weight.copy_((two.weight[1] - two.weight[0]).flatten()[None])
        one[1].bias.copy_((two.bias[1] - two.bias[0])[None])
    settings = Certification(sigma=0.5, n=200)
    layouts = (one, nn.Sequential(one, nn.Flatten(0)), nn.Sequential(two, nn.Unflatten(1, (2, 1, 1))))
    double = certify_classes(two, images, settings)
    for network in layouts:
        single = certify_classes(network, images, settings)
        assert torch.equal(single.label, double.label)
        assert torch.equal(single.radius, double.radius)


@pytest.mark.parametrize("regions", [None, False, True])
def test_what_shares_a_pass_with_an_image_does_not_alter_its_draws(regions: bool | None) -> None:
    """Of classes (None) and maps: alone, in another place, in passes of another size, the certificate is the same."""
    torch.manual_seed(0)
    images, ids = torch.randn(5, 1, 3, 3, 3, dtype=torch.float64), ["a", "b", "c", "d", "e"]
    layers = [nn.Flatten(), nn.Linear(27, 2)] if regions is None else [nn.Conv3d(1, 2, 3, padding=1)]
    network = nn.Sequential(*layers).double()

    def certified(places: list[int], inputs_per_pass: int) -> list[Any]:
        settings, names = Certification(1.0, n0=20, n=100, inputs_per_pass=inputs_per_pass), [ids[i] for i in places]
        if regions is None:
            return list(certify_classes(network, images[places], settings, ids=names).probability)
        return list(certify_labels(network, images[places], settings, ids=names, regions=regions).labels)

    whole = certified([0, 1, 2, 3, 4], 1000)
    assert len({str(one) for one in whole}) == 5
    for found in (certified([0, 1, 2, 3, 4], 7), [certified([i], 64)[0] for i in range(5)]):
        assert all(torch.equal(one, other) for one, other in zip(found, whole, strict=True))
    assert all(torch.equal(a, whole[i]) for a, i in zip(certified([4, 1], 64), (4, 1), strict=True))


def test_images_alike_have_draws_of_their_own() -> None:
    found = certify_classes(Sign().double(), torch.full((8, 1), 0.5).double(), Certification(1.0, n=200))
    assert len(found.probability.unique()) > 4
    for ids in (["a", "a"], ["a"]):
        with pytest.raises(InputError, match="ids: received .*allowed is 2 different ones"):
            certify_classes(nn.Linear(1, 2), torch.zeros(2, 1), Certification(1.0), ids=ids)


# ------------------------------------------------------------------ segmentation


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_voxels_far_from_the_boundary_are_certified(axes: int) -> None:
    """With tau 3/4 a voxel is certain if ``Phi(|x| / sigma)`` is well above it, and never if it is below."""
    values = torch.tensor([3.0, 2.0, 0.1, -0.1, 0.5, -2.0, -3.0, 2.5])
    images = values.view(1, 1, *[1] * (axes - 1), 8)
    found = certify_labels(Sign(), images, Certification(sigma=1.0, n=2000, tau=0.75))
    assert found.labels.flatten().tolist() == [1, 1, NO_CLASS, NO_CLASS, NO_CLASS, 0, 0, 1]
    assert found.radius == pytest.approx(0.6744897501960817)
    assert float(found.abstained) == 3 / 8


def test_holm_by_hand() -> None:
    """Holm 1979: p-values .01 .013 .014 .19 .35 at .05 against .01 .0125 .0167 .025 .05: only the first is rejected."""
    p_values = np.array([0.013, 0.35, 0.01, 0.19, 0.014])
    assert holm(p_values, 0.05).tolist() == [False, False, True, False, False]
    assert holm(p_values.reshape(1, 5), 0.06).tolist() == [[True, False, True, False, True]]


def test_least_draws_are_the_least() -> None:
    for tau, alpha, tests in ((0.5, 0.001, 1), (0.75, 0.001, 10**5), (0.9, 0.05, 7)):
        n = least_draws(tau, alpha, tests)
        assert tau**n <= alpha / tests < tau ** (n - 1)


def _all_completions(labels: Tensor, classes: int) -> Any:
    free = (labels == NO_CLASS).nonzero()[:, 0]
    for values in itertools.product(range(classes + 1), repeat=len(free)):
        full = labels.clone()
        full[free] = torch.tensor(values, dtype=torch.long)
        yield full


@pytest.mark.parametrize("seed", range(12))
def test_no_completion_of_the_abstained_voxels_has_a_lower_dice(seed: int) -> None:
    """Brute force over eight voxels and two classes, one of them absent now and then; a single class attains it."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, 3 if seed % 3 else 2, (8,), generator=generator)
    labels = torch.where(torch.rand(8, generator=generator) < 0.5, NO_CLASS, target)
    labels[torch.randint(0, 8, (1,), generator=generator)] = torch.randint(0, 3, (1,), generator=generator)
    task = SegmentationTask.for_evaluation()
    bound = certified_dice(labels[None], target[None], 2)[0]
    there = torch.stack([(target == k).any() for k in (1, 2)])
    lowest, lowest_mean = torch.full((2,), torch.inf, dtype=torch.float64), float("inf")
    for full in _all_completions(labels, 2):
        logits = nn.functional.one_hot(full, 3).T[None].float()
        per_class = task.dice(logits, target[None, None])[0].double()
        lowest = torch.fmin(lowest, per_class)
        lowest_mean = min(lowest_mean, float(per_class.nanmean()))
    known = bound.isfinite()
    assert torch.allclose(bound[known], lowest[known])
    assert torch.isinf(lowest[~known]).all() or torch.isnan(lowest[~known]).all()
    if there.any():
        assert float(certified_score(bound[None], there[None])) <= lowest_mean + 1e-12


def test_the_slices_of_a_volume_are_wrong_together_with_alpha() -> None:
    """Voxels at exactly tau: whatever is certified is wrong. Each of 20 slices alone errs in up to 5 % of the cases."""
    wrong = {True: 0, False: 0}
    images = torch.full((20, 1, 1), float(stats.norm.ppf(0.75)), dtype=torch.float64)
    for together in wrong:
        for seed in range(100):
            settings = Certification(sigma=1.0, n0=20, n=100, alpha=0.05, seed=seed, inputs_per_pass=4000)
            found = certify_labels(Sign(), images, settings, together=together)
            wrong[together] += bool((found.labels != NO_CLASS).any())
    assert wrong[True] <= stats.binom.ppf(0.999, 100, 0.05)
    assert wrong[False] > 25
    with pytest.raises(InputError, match="n: received 45, allowed is at least 49; .* 1024 voxels together"):
        certify_labels(Sign(), torch.zeros(4, 1, 16, 16), Certification(sigma=1.0, n=45), together=True)
    assert certify_labels(Sign(), torch.zeros(4, 1, 16, 16), Certification(sigma=1.0, n=45)).labels.shape == (4, 16, 16)


def test_windows_that_overlap_see_the_same_noise() -> None:
    """A voxel is drawn once for the whole volume, so a window over it gives what the network gives at once."""

    class Windowed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sliding_window_inference(x, (4, 4, 4), 2, Sign(), overlap=0.5)

    images = torch.randn(1, 1, 6, 5, 7, generator=torch.Generator().manual_seed(0))
    one, other = (certify_labels(network, images, Certification(sigma=0.5)) for network in (Sign(), Windowed()))
    assert torch.equal(one.labels, other.labels)
    assert 0 < float(one.abstained) < 1


def test_ignored_voxels_are_nowhere() -> None:
    labels, target = torch.tensor([[1, NO_CLASS, NO_CLASS]]), torch.tensor([[1, 1, 0]])
    valid = torch.tensor([[True, False, False]])
    assert certified_dice(labels, target, 1, valid).tolist() == [[1.0]]
    assert certified_region_dice(labels[:, None], target[:, None], valid).tolist() == [[1.0]]


def test_regions_are_classes_of_their_own() -> None:
    """Two regions by sigmoids: the same as a two-class model for each, with all voxels of both in one correction."""
    images = torch.tensor([[[3.0, -3.0, 0.05, 2.0]]])

    class Regions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x, x + 1], 1)

    settings = Certification(sigma=0.8, n=1000)
    found = certify_labels(Regions(), images, settings, regions=True).labels
    assert found.shape == (1, 2, 4)
    assert found[0].tolist() == [[1, 0, NO_CLASS, 1], [1, 0, 1, 1]]


def test_no_attack_inside_the_radius_changes_a_certified_voxel() -> None:
    """PGD on the smoothed model, on a convolutional network, at 0.99 R."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).double()
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    certificate = certify_labels(network, images, Certification(sigma=0.3, n=600, inputs_per_pass=900))
    assert (certificate.labels != NO_CLASS).double().mean() > 0.3
    model = SmoothedModel(network, 0.3, draws=400, seed=5, inputs_per_pass=1200)
    target = model.predict(images)
    attack = PGD(Threat("l2", 0.99 * certificate.radius, unit="norm"), steps=8, until="lowest")
    result = attack(model, images, target.clamp(min=0)[:, None], SegmentationTask.for_evaluation())
    assert float((result.images - images).flatten(1).norm(dim=1).min()) > 0.9 * certificate.radius
    found = model(result.images).argmax(1)
    certain = certificate.labels != NO_CLASS
    assert torch.equal(found[certain], certificate.labels[certain])
    assert not torch.equal(found[~certain], model(images).argmax(1)[~certain])  # the attack does what it can


# ------------------------------------------------------------------ the smoothed model


def test_its_votes_are_counted_and_its_gradient_is_that_of_the_mean_probability() -> None:
    network, images, _ = problem(3, (1, 4), count=5)
    model = SmoothedModel(network, 0.7, draws=20, seed=3)
    noise = model.noise.draws(images, 20, [torch.Generator().manual_seed(3)])
    images.requires_grad_()
    outputs = torch.stack([network(images + one) for one in noise])
    votes = nn.functional.one_hot(outputs.argmax(2), 3).sum(0)
    found = model(images)
    assert torch.equal(found.detach(), (votes + 1).double().log() - np.log(20))
    mean = outputs.softmax(2).mean(0).log()
    weights = torch.randn_like(found)
    (expected,) = torch.autograd.grad((weights * mean).sum(), images)
    (gradient,) = torch.autograd.grad((weights * found).sum(), images)
    assert torch.allclose(gradient, expected)
    soft = SmoothedModel(network, 0.7, draws=20, seed=3, soft=True)
    assert torch.allclose(soft(images), mean)


@pytest.mark.parametrize("regions", [False, True])
def test_neither_pieces_nor_neighbours_matter(regions: bool) -> None:
    """What a generator gives depends on how much it is asked for at once, above all where that is no multiple of 16."""
    torch.manual_seed(0)
    network, images = nn.Conv3d(1, 2, 3, padding=1).double(), torch.randn(8, 1, 3, 3, 5, dtype=torch.float64)
    models = [SmoothedModel(network, 0.5, draws=10, regions=regions, inputs_per_pass=size) for size in (1000, 16, 1)]
    whole, *others = (model(images) for model in models)
    assert whole.shape == (8, 2, 3, 3, 5)
    for other in (*others, torch.cat([models[1](image[None]) for image in images])):
        torch.testing.assert_close(other, whole)


def test_what_is_nan_is_no_vote_for_outside() -> None:
    """A region whose output is NaN wherever it would be inside."""

    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, torch.nan, x)

    model = SmoothedModel(Broken(), 1.0, draws=100, regions=True)
    assert model.predict(torch.tensor([[[9.0, -9.0]]])).tolist() == [[[NO_CLASS, 0]]]
    assert model(torch.tensor([[[9.0, -9.0]]])).isnan().tolist() == [[[True, False]]]


def test_channels_that_are_no_intensities_get_no_noise() -> None:
    model = SmoothedModel(nn.Identity(), 1.0, channels=(0,))
    noise = model.noise.draws(torch.zeros(2, 3, 4), 5, torch.Generator().manual_seed(0))
    assert (noise[:, :, 1:] == 0).all()
    assert (noise[:, :, 0] != 0).all()


def test_a_network_that_gives_nan_has_no_votes() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x > 0, torch.nan, torch.ones_like(x)) * torch.tensor([[1.0, 2.0]])

    found = certify_classes(Broken(), torch.tensor([[-5.0], [5.0]]), Certification(sigma=0.5, n=100))
    assert found.label.tolist() == [1, NO_CLASS]


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sigma": 0.0}, "sigma: received 0.0, allowed is a finite number > 0"),
        ({"sigma": float("nan")}, "sigma: received nan"),
        ({"alpha": 0.0}, "alpha: received 0.0, allowed is a probability between 0 and 1"),
        ({"alpha": 1.0}, "alpha: received 1.0"),
        ({"n": 0}, "n: received 0, allowed is a whole number >= 1"),
        ({"tau": 0.4}, "tau: received 0.4, allowed is above 0.5 and below 1"),
        ({"tau": 0.5}, "tau: received 0.5"),
        ({"tau": 1.0}, "tau: received 1.0"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        Certification(**{"sigma": 0.25, **values})


def test_too_few_draws_say_how_many_are_needed() -> None:
    with pytest.raises(InputError, match="n: received 9, allowed is at least 10"):
        certify_classes(nn.Linear(2, 2), torch.zeros(1, 2), Certification(sigma=1.0, n=9))
    with pytest.raises(InputError, match="n: received 40, allowed is at least 49; .* 1024 voxels together"):
        certify_labels(Sign(), torch.zeros(1, 1, 32, 32), Certification(sigma=1.0, n=40))


def test_noise_that_rounding_swallows() -> None:
    images = torch.full((1, 2), 3e6)
    with pytest.raises(InputError, match="sigma: received 0.1, allowed is at least 366 beside images of size 3e"):
        certify_classes(nn.Linear(2, 2), images, Certification(sigma=0.1))
    assert len(certify_classes(nn.Linear(2, 2).double(), images.double(), Certification(sigma=0.1)).label) == 1


def test_a_network_whose_images_decide_together() -> None:
    """Batch norm over the batch at hand: its noisy copies would be no independent draws."""
    torch.manual_seed(0)

    def network(**norm: bool) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(1, **norm), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))

    images = torch.randn(4, 1, 3, 3)
    with pytest.raises(InputError, match="another answer to the same image beside other images"):
        certify_classes(network(track_running_stats=False), images, Certification(sigma=1.0, n=20))
    assert len(certify_classes(network(), images, Certification(sigma=1.0, n=20)).label) == 4


def test_a_network_that_is_random_by_itself() -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.rand(len(x), 2)

    with pytest.raises(InputError, match="network: received .another answer to the same image"):
        certify_classes(Random(), torch.zeros(1, 2), Certification(sigma=1.0))
