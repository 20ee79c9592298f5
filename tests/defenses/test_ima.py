"""IMA: Algorithms 1 to 3 traced by hand, margin rules, identities, closed forms, passes, resume."""

from __future__ import annotations

import copy
import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.ima import IMA, PRESETS, IMASettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask
from tests.conftest import LinearNetwork, LinearTask
from tests.line_classifier import two_faced

# One dimension, f(x) = x, right while x > 0. Radius E = 0.5 and K = 8 give steps of 4 E / K = 0.25: exact in binary.
X = torch.tensor([[0.375], [2.0], [-1.0]], dtype=torch.float64)


def line() -> LinearNetwork:
    network = LinearNetwork((1,))
    with torch.no_grad():
        network.weight.fill_(1.0)
    return network


def make(images: Tensor = X, **settings: object) -> tuple[IMA, Batch]:
    values = {"eps": 2.0, "delta": 0.5, "unit": "norm", "steps": 8, "searches": 3, "algorithm": 2, **settings}
    ima = IMA(LinearTask(), IMASettings(**values))  # type: ignore[arg-type]
    ima.bind(SampleIds({"train": len(images)}), "cpu")
    return ima, Batch(images, torch.ones(len(images), dtype=images.dtype), torch.arange(len(images)))


def run(ima: IMA, batch: Batch, network: nn.Module | None = None) -> tuple[list[float], nn.Module]:
    network = network or line()
    losses = []
    for part in ima.losses(network, batch):
        part.loss.backward()
        losses.append(part.loss.item())
    return losses, network


def noisy_images(ima: IMA, batch: Batch) -> list[float]:
    """The images of the noisy part, read from the network's own inputs."""
    seen: list[Tensor] = []
    network = line()
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    run(ima, batch, network)
    return seen[-1][:, 0].tolist()


def test_algorithm_2_by_hand() -> None:
    """x0: 0.375, 0.125, -0.125 (wrong); halving [0.125, -0.125]: 0 wrong, 0.0625 right, 0.03125 right; [0.03125, 0] is
    left, and its midpoint trained on.

    x1 stays right and ends at 2 - E; x2 is wrong without an attack and stays.
    """
    ima, batch = make()
    assert noisy_images(ima, batch) == [0.015625, 1.5, -1.0]
    # x0 crossed but its midpoint is right: unchanged. x1 grows by delta. x2 was not attacked: unchanged.
    assert ima.margins.values.tolist() == [0.5, 1.0, 0.5]


@pytest.mark.parametrize(
    ("searches", "rule", "noisy", "margin"),
    [
        (0, "paper", 0.0, (0.375 + 0.5) / 2),  # midpoint 0 is not above 0: wrong, so the margin shrinks
        (1, "paper", 0.0625, 0.5),  # 0 is wrong, [0.125, 0] is left; midpoint right: unchanged
        (2, "paper", 0.03125, 0.5),
        (2, "always_shrink", 0.03125, (0.34375 + 0.5) / 2),
    ],
)
def test_margin_rules_by_hand(searches: int, rule: str, noisy: float, margin: float) -> None:
    ima, batch = make(searches=searches, margin_rule=rule)
    assert noisy_images(ima, batch)[0] == noisy
    assert float(ima.margins.values[0]) == margin


def test_last_right_end_of_the_search() -> None:
    ima, batch = make(search_result="last_right", searches=1)
    assert noisy_images(ima, batch)[0] == 0.125


def test_algorithm_3_by_hand() -> None:
    """All steps first: x_K = 0.375 - 0.5; halving [0.375, -0.125]: 0.125 right, 0 wrong, 0.0625 right."""
    ima, batch = make(algorithm=3)
    assert noisy_images(ima, batch) == [0.03125, 1.5, -1.0]
    assert ima.margins.values.tolist() == [0.5, 1.0, 0.5]


def test_loss_and_gradient_by_hand() -> None:
    """L = (L0 + L1) / 2 with L = -mean f(x): values and weight gradient are means of the images."""
    ima, batch = make()
    losses, network = run(ima, batch)
    clean, noisy = (0.375 + 2.0 - 1.0) / 3, (0.015625 + 1.5 - 1.0) / 3
    assert losses == pytest.approx([-clean / 2, -noisy / 2])
    assert float(network.weight.grad) == pytest.approx(-(clean + noisy) / 2)  # type: ignore[arg-type]


def test_weight_of_the_noisy_loss() -> None:
    ima, batch = make(weight_noisy=0.25)
    losses, _ = run(ima, batch)
    clean, noisy = (0.375 + 2.0 - 1.0) / 3, (0.015625 + 1.5 - 1.0) / 3
    assert losses == pytest.approx([-0.75 * clean, -0.25 * noisy])


def test_without_the_gate_wrong_samples_are_attacked_and_their_margin_shrinks() -> None:
    ima, batch = make(clean_gate=False)
    assert noisy_images(ima, batch)[2] == -1.0  # wrong at iterate 0: bracket and bisection collapse to the clean image
    assert float(ima.margins.values[2]) == 0.25  # (0 + 0.5) / 2


def test_margins_never_exceed_eps() -> None:
    ima, batch = make(torch.tensor([[50.0]], dtype=torch.float64), eps=1.2)
    for expected in (1.0, 1.2, 1.2):
        run(ima, batch)
        assert float(ima.margins.values) == pytest.approx(expected)


def test_once_per_epoch_rule_by_hand() -> None:
    """Official: halved distances compound over the draws of an epoch; one draw that stays right makes it grow."""
    settings = {"margin_update": "epoch", "margin_rule": "always_shrink", "searches": 2}
    images = torch.tensor([[0.375], [0.375], [2.0], [9.0]], dtype=torch.float64)
    ima, _ = make(images, **settings)
    draw = lambda x, i: run(ima, Batch(torch.tensor([[x]], dtype=torch.float64), torch.ones(1), torch.tensor([i])))  # noqa: E731
    draw(0.375, 0), draw(0.375, 0)  # crossed twice at distance 0.34375
    draw(0.375, 1), draw(2.0, 1)  # crossed once, right once
    draw(2.0, 2)
    assert ima.margins.values.tolist() == [0.5] * 4  # nothing before the end of the epoch
    ima.on_epoch_end()
    assert ima.margins.values.tolist() == [((0.5 + 0.34375) / 2 + 0.34375) / 2, 1.0, 1.0, 0.5]
    ima.on_epoch_end()  # an epoch without draws changes nothing
    assert ima.margins.values.tolist() == [((0.5 + 0.34375) / 2 + 0.34375) / 2, 1.0, 1.0, 0.5]


@pytest.mark.parametrize("algorithm", [2, 3])
def test_margins_converge_to_the_distance_of_a_linear_model(algorithm: int) -> None:
    """With fixed weights the margin of a sample settles at its distance to the boundary, or at eps."""
    network = LinearNetwork((1, 4, 5))
    images = torch.randn(12, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images = images * network(images).sign().detach().view(-1, 1, 1, 1)  # all right
    distance = (network(images)[:, 0] / network.weight.norm()).detach()
    eps, delta = float(distance.median()) * 1.5, 0.02
    ima, _ = make(images, eps=eps, delta=delta, steps=20, searches=10, algorithm=algorithm)
    batch = Batch(images, torch.ones(12, dtype=torch.float64), torch.arange(12))
    for _ in range(150):
        run(ima, batch, network)
    expected = distance.clamp(max=eps)
    assert ((ima.margins.values - expected).abs() <= 2 * delta).all()


def test_off_is_bit_for_bit_the_clean_step() -> None:
    torch.manual_seed(0)
    network = nn.Conv2d(1, 3, 3, padding=1)
    images, target = torch.randn(4, 1, 8, 8), torch.randint(0, 3, (4, 1, 8, 8))
    task = SegmentationTask(lambda o, t: nn.functional.cross_entropy(o, t[:, 0]))
    task.training_loss(network(images), target).backward()
    expected = [p.grad.clone() for p in network.parameters()]  # type: ignore[union-attr]
    network.zero_grad()
    ima = IMA(task, IMASettings(eps=0, delta=0))
    ima.bind(SampleIds({"train": 4}), "cpu")
    parts = list(ima.losses(network, Batch(images, target, torch.arange(4))))
    assert len(parts) == 1
    parts[0].loss.backward()
    assert all(torch.equal(p.grad, e) for p, e in zip(network.parameters(), expected, strict=True))  # type: ignore[arg-type]
    assert ima.statistics.passes.forward == 4


def test_nothing_right_means_a_clean_step() -> None:
    ima, batch = make(torch.tensor([[-1.0], [-2.0]], dtype=torch.float64))
    losses, _ = run(ima, batch)
    assert losses == [1.5]
    assert ima.on_epoch_end()["passes_per_sample"] == 3.0


def test_calling_it_adds_up_the_parts() -> None:
    ima, batch = make()
    parts, _ = run(copy.deepcopy(ima), batch)
    assert ima(line(), batch.images, batch.target, batch.ids).item() == pytest.approx(sum(parts))


def test_passes_are_counted_as_made() -> None:
    """The defence's own count equals what hooks see."""
    made = {"forward": 0}
    network = line()
    network.register_forward_hook(lambda m, i, o: made.__setitem__("forward", made["forward"] + len(i[0])))
    for algorithm in (2, 3):
        made["forward"] = 0
        ima, batch = make(algorithm=algorithm)
        run(ima, batch, network)
        passes = ima.statistics.passes
        assert passes.forward == made["forward"]
        # Clean 3, attack, search 3 for the crossed one, noisy 3. Algorithm 2: x0 leaves at k = 2, x1 makes all steps.
        attack = (3 + 9, 3 + 8) if algorithm == 2 else (2 * 9, 2 * 8)
        assert (passes.forward, passes.backward_input, passes.backward_full) == (3 + attack[0] + 3 + 3, attack[1], 6)


def test_order_and_split_of_the_batch_do_not_change_the_margins() -> None:
    network = LinearNetwork((1, 4, 5))
    images = torch.randn(6, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    target = torch.ones(6, dtype=torch.float64)
    whole, _ = make(images, eps=1.0, delta=0.3)
    run(whole, Batch(images, target, torch.arange(6)), network)
    parts, _ = make(images, eps=1.0, delta=0.3)
    for index in ([5, 0], [1], [3, 4, 2]):
        i = torch.tensor(index)
        run(parts, Batch(images[i], target[i], i), network)
    assert torch.equal(whole.margins.values, parts.margins.values)


@pytest.mark.parametrize(("margin", "radius"), [(0.5, 0.5), (0.7, 0.5), (2.0, 1.5)])
def test_the_random_start_is_on_its_sphere_and_replays(margin: float, radius: float) -> None:
    """Radius max(E - delta, delta), with delta 0.5, read from the first image that the attack tries."""
    starts = []
    for _ in range(2):
        images = torch.full((3, 1, 4, 5), 5.0, dtype=torch.float64)
        ima, batch = make(images, random_start=True, eps=2.0, delta=0.5)
        ima.margins.values.fill_(margin)
        network = LinearNetwork((1, 4, 5), bias=1e3)
        seen: list[Tensor] = []
        network.register_forward_pre_hook(lambda m, i, seen=seen: seen.append(i[0].detach()))
        run(ima, batch, network)
        starts.append(seen[1] - images)  # seen[0] is the clean forward
    torch.testing.assert_close(starts[0].flatten(1).norm(dim=1), torch.full((3,), radius, dtype=torch.float64))
    assert torch.equal(starts[0], starts[1])


@pytest.mark.parametrize("algorithm", [2, 3])
@pytest.mark.parametrize("random_start", [False, True])
@pytest.mark.parametrize(("norm", "unit"), [("l2", "rms"), ("l2", "norm"), ("linf", "norm")])
@pytest.mark.parametrize("search_result", ["midpoint", "last_right"])
def test_no_option_leaves_the_margin(
    algorithm: int, random_start: bool, norm: str, unit: str, search_result: str
) -> None:
    images, target = blobs(2)
    images = torch.cat([images, target.float()], 1)  # a second channel that is no intensity
    torch.manual_seed(0)
    network = nn.Conv2d(2, 2, 3, padding=1)
    task = SegmentationTask(lambda o, t: o.mean(), SegmentationSettings(threshold=1e-6))
    settings: dict[str, Any] = {
        "eps": 0.4, "delta": 0.2, "algorithm": algorithm, "random_start": random_start, "norm": norm,
        "unit": unit, "search_result": search_result, "clean_gate": False, "steps": 4, "searches": 3,
        "relative_step": 1.3,
    }  # fmt: skip
    ima = IMA(task, IMASettings(**settings), channels=(0,))
    ima.bind(SampleIds({"train": 4}), "cpu")
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda m, i: seen.append(i[0].detach()))
    list(ima.losses(network, Batch(images, target, torch.arange(4))))
    for attacked in seen:
        if len(attacked) == len(images):
            delta = attacked - images
            size = ima.threat.size(delta) / ima.threat.scale(images)
            assert (size <= 0.2 * (1 + 1e-5)).all()
            assert (delta[:, 1] == 0).all()
    assert (seen[-1] != images).any()


@pytest.mark.parametrize(("algorithm", "random_start"), [(2, False), (3, False), (2, True)])
def test_a_sample_that_is_wrong_where_the_attack_looks_is_wrong_and_did_not_cross(
    algorithm: int, random_start: bool
) -> None:
    """Young networks with BatchNorm: in train mode both samples are right, in eval mode, where IMA attacks, one is.

    Its margin stays (it used to be halved at every visit); the look at the clean images in eval mode is booked.
    """
    network = two_faced()
    batch = Batch(torch.tensor([[-1.0], [3.0]], dtype=torch.float64), torch.tensor([0, 1]), torch.arange(2))
    settings = {"eps": 2.0, "delta": 0.5, "unit": "norm", "steps": 4, "algorithm": algorithm}
    ima = IMA(ClassificationTask(), IMASettings(**settings, random_start=random_start))  # type: ignore[arg-type]
    ima.bind(SampleIds({"train": 2}), "cpu")
    run(ima, batch, network)
    assert ima.margins.values.tolist() == [0.5, 1.0]
    assert ima.statistics.passes.forward == 2 + 2 + 5 + 2
    figures = ima.on_epoch_end()
    assert (figures["clean_right"], figures["attacked"], figures["crossed"]) == (1.0, 0.5, 0.0)


def test_the_side_of_the_midpoint_is_that_of_the_mode_of_the_attack() -> None:
    """In eval mode the boundary is at -2, and both midpoints are right; in the training forward neither is.

    Both midpoints are -1.875, and so is the mean of that batch.
    """
    network = two_faced()
    images = torch.tensor([[-1.75], [-1.5]], dtype=torch.float64)
    batch = Batch(images, torch.tensor([1, 1]), torch.arange(2))
    settings = {"eps": 2.0, "delta": 0.5, "unit": "norm", "steps": 8, "searches": 0, "algorithm": 2}
    ima = IMA(ClassificationTask(), IMASettings(**settings))  # type: ignore[arg-type]
    ima.bind(SampleIds({"train": 2}), "cpu")
    run(ima, batch, network)
    # Steps of 0.25. x0: -2 is not above 0, hence wrong at the first step; the midpoint -1.875 is right: unchanged.
    # x1: -1.75, then -2: the midpoint -1.875 is right as well.
    assert ima.margins.values.tolist() == [0.5, 0.5]
    assert ima.statistics.passes.forward == 2 + 2 + (2 + 3) + 2 + 2  # the last but one: the look at the midpoints


def test_points_are_not_searched() -> None:
    """Wrong without an attack, and no gate: nothing lies between x and x, so no pass is spent on it."""
    ima, batch = make(torch.tensor([[-1.0], [-2.0]], dtype=torch.float64), clean_gate=False)
    run(ima, batch)
    assert ima.statistics.passes.forward == 2 + 2 + 2  # clean, one check each, noisy


def test_a_blind_attack_does_not_make_a_margin_grow() -> None:
    ima, batch = make(torch.tensor([[2.0]], dtype=torch.float64))
    network = line()
    network.forward = lambda x: x.detach() * network.weight + 0.0 * x  # type: ignore[method-assign]
    run(ima, batch, network)
    assert ima.margins.values.tolist() == [0.5]
    assert ima.on_epoch_end()["dead_gradient"] == 1.0


class Small(nn.Module):
    """Two layers, instance norm, any rank."""

    def __init__(self, rank: int, batch_norm: bool = False) -> None:
        super().__init__()
        conv = nn.Conv2d if rank == 2 else nn.Conv3d
        norms = {(2, False): nn.InstanceNorm2d, (3, False): nn.InstanceNorm3d, (2, True): nn.BatchNorm2d}
        self.body = nn.Sequential(
            conv(1, 4, 3, padding=1),
            norms[rank, batch_norm](4, affine=True),
            nn.LeakyReLU(inplace=True),
            conv(4, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def blobs(rank: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    target = (torch.rand(4, 1, *[8] * rank, generator=generator) < 0.4).long()
    return (target + 0.3 * torch.randn(target.shape, generator=generator)).to(dtype), target


def train(network: nn.Module, ima: IMA, images: Tensor, target: Tensor, epochs: int) -> list[dict[str, float]]:
    optimiser = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    log = []
    for _ in range(epochs):
        for _ in range(8):
            optimiser.zero_grad()
            for part in ima.losses(network, Batch(images, target, torch.arange(len(images)))):
                part.loss.backward()
            optimiser.step()
        log.append(ima.on_epoch_end())
    return log


def segmentation_ima(images: Tensor, **settings: object) -> IMA:
    task = SegmentationTask(lambda o, t: nn.functional.cross_entropy(o, t[:, 0]), SegmentationSettings())
    ima = IMA(task, IMASettings(**{"eps": 0.3, "delta": 0.1, "steps": 5, "searches": 4, **settings}))  # type: ignore[arg-type]
    ima.bind(SampleIds({"train": len(images)}), "cpu")
    return ima


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_training_grows_margins_in_2d_and_3d(rank: int, dtype: torch.dtype, preset: str) -> None:
    torch.manual_seed(0)
    images, target = blobs(rank, dtype)
    network = Small(rank).to(dtype)
    own = {k: v for k, v in PRESETS[preset].items() if k in IMASettings.names()}
    log = train(network, segmentation_ima(images, **own), images, target, epochs=6)
    assert log[-1]["attacked"] == 1.0
    assert log[-1]["margin_mean"] > 0.1
    assert log[-1]["dead_gradient"] == 0.0
    assert all(math.isfinite(v) for row in log for v in row.values())


def test_the_attack_runs_under_autocast() -> None:
    torch.manual_seed(0)
    images, target = blobs(2)
    network, ima = Small(2), segmentation_ima(images)
    train(network, ima, images, target, 3)
    exact = copy.deepcopy(ima)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        list(ima.losses(network, Batch(images, target, torch.arange(4))))
    list(exact.losses(network, Batch(images, target, torch.arange(4))))
    assert ima.on_epoch_end()["dead_gradient"] == 0.0
    torch.testing.assert_close(ima.margins.values, exact.margins.values, atol=0.05, rtol=0)


def test_batch_norm_statistics_see_the_training_forwards_only() -> None:
    """Clean and noisy forward count; the attack and the search leave the running statistics alone."""
    torch.manual_seed(0)
    images, target = blobs(2)
    for mode in ("eval", "train"):
        network, ima = Small(2, batch_norm=True).train(), segmentation_ima(images, attack_mode=mode)
        train(network, ima, images, target, 3)
        norm = network.body[1]
        before = int(norm.num_batches_tracked)
        list(ima.losses(network, Batch(images, target, torch.arange(4))))
        assert int(norm.num_batches_tracked) == before + 2


def test_resume_is_bit_for_bit() -> None:
    """Training 2 + 2 epochs through a checkpoint equals training 4, random starts included."""
    images, target = blobs(2)

    def fresh() -> tuple[nn.Module, IMA]:
        torch.manual_seed(0)
        return Small(2), segmentation_ima(images, random_start=True, margin_update="epoch")

    network, ima = fresh()
    optimiser = torch.optim.SGD(network.parameters(), 0.05)

    def epochs(network: nn.Module, ima: IMA, optimiser: torch.optim.Optimizer, count: int) -> None:
        for _ in range(count):
            for part in ima.losses(network, Batch(images, target, torch.arange(4))):
                part.loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            ima.on_epoch_end()

    epochs(network, ima, optimiser, 20)
    buffer = io.BytesIO()
    torch.save({"network": network.state_dict(), "ima": ima.state_dict()}, buffer)
    buffer.seek(0)
    epochs(network, ima, optimiser, 10)

    saved = torch.load(buffer, weights_only=True)
    resumed, other = fresh()
    resumed.load_state_dict(saved["network"])
    other.load_state_dict(saved["ima"])
    epochs(resumed, other, torch.optim.SGD(resumed.parameters(), 0.05), 10)
    assert torch.equal(ima.margins.values, other.margins.values)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), resumed.parameters(), strict=True))


def test_margins_of_other_samples_are_refused() -> None:
    ima, _ = make()
    other, _ = make(torch.ones(4, 1, dtype=torch.float64))
    with pytest.raises(InputError, match="IMA margins: the checkpoint belongs to 4 other samples"):
        ima.load_state_dict(other.state_dict())
    assert ima.margins.values.tolist() == [0.5] * 3


def test_margins_above_a_smaller_eps_are_cut() -> None:
    ima, _ = make()
    ima.margins.values = torch.tensor([0.25, 1.0, 2.0])
    smaller, _ = make(eps=1.2)
    smaller.load_state_dict(ima.state_dict())
    torch.testing.assert_close(smaller.margins.values, torch.tensor([0.25, 1.0, 1.2]))


def test_margins_in_another_unit_are_refused() -> None:
    ima, _ = make(torch.ones(3, 1, dtype=torch.float64))
    other, _ = make(eps=0.5, delta=0.1, unit="rms")
    with pytest.raises(InputError, match="norm and unit: received 'l2, rms', allowed is those of the checkpoint"):
        other.load_state_dict(ima.state_dict())
    assert other.margins.values.tolist() == pytest.approx([0.1] * 3)


def test_a_stream_of_another_device_begins_anew() -> None:
    ima, _ = make()
    saved = {**ima.state_dict(), "generator": torch.zeros(16, dtype=torch.uint8)}
    ima.load_state_dict(saved)
    assert torch.equal(ima._generator.get_state(), torch.Generator().manual_seed(0).get_state())  # type: ignore[union-attr]


def test_use_before_bind_says_so() -> None:
    ima = IMA(LinearTask(), IMASettings())
    with pytest.raises(InputError, match="IMA: no samples are known; call the defence's bind"):
        list(ima.losses(line(), Batch(X, torch.ones(3), torch.arange(3))))


def test_rms_margins_mean_the_same_on_every_size() -> None:
    """A margin is kept in the unit of eps; the attack turns it into a norm for the image at hand."""
    for side in (6, 12):
        images = torch.full((1, 1, side, side), 9.0, dtype=torch.float64)
        ima = IMA(LinearTask(), IMASettings(eps=0.3, delta=0.1, steps=4))
        ima.bind(SampleIds({"train": 1}), "cpu")
        network = LinearNetwork((1, side, side), bias=1e4)
        seen: list[Tensor] = []
        network.register_forward_pre_hook(lambda m, i, seen=seen: seen.append(i[0].detach()))
        run(ima, Batch(images, torch.ones(1, dtype=torch.float64), torch.arange(1)), network)
        assert float((seen[-1] - images).square().mean().sqrt()) == pytest.approx(0.1)
        assert float(ima.margins.values) == pytest.approx(0.2)
