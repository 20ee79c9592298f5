"""Every red flag is raised by a model, or by records, made for it; honest trained models raise none."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from planted_evaluation import FAMILIES, label_score, plant
from torch import Tensor, nn

from monai_adv.attacks import PGD
from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.square import Square
from monai_adv.evaluation import probes
from monai_adv.evaluation.flags import (
    Flag,
    black_box,
    find_flags,
    inputs,
    longer,
    monotone,
    noise,
    probe,
    verdict,
    zero_gradients,
)
from monai_adv.evaluation.subject import Level, Picture, Record, Score
from monai_adv.tasks import ClassificationTask, SegmentationTask
from monai_adv.threats import Threat

LEVELS = (Level("l2", 3.0), Level("l2", 5.0), Level("linf", 0.5))
FAMILY = {level.key: FAMILIES for level in LEVELS}


@dataclass
class ToyCase:
    """A group of images, each scored for itself."""

    name: str
    images: Tensor
    target: Tensor
    network: nn.Module
    task: object
    box: tuple[float, float] | None = None

    def threat(self, level: Level) -> Threat:
        return Threat(level.norm, level.eps, self.box)

    @torch.no_grad()
    def scores(self, images: Tensor) -> list[Score]:
        output = self.network(images)
        if isinstance(self.task, SegmentationTask):
            dice = self.task.dice(output, self.target).nanmean(1)
            return [Score(f"{self.name}-{i}", float(v)) for i, v in enumerate(dice)]
        rows = zip(self.target.tolist(), output.softmax(1).tolist(), strict=True)
        return [label_score(f"{self.name}-{i}", label, p) for i, (label, p) in enumerate(rows)]

    def combine(self, images: Tensor, others: Tensor) -> Tensor:
        a, b = (torch.tensor([s.score for s in self.scores(x)]) for x in (images, others))
        return torch.where((b < a).view(-1, *[1] * (images.ndim - 1)), others, images)

    def picture(self, images: Tensor) -> list[Picture]:
        return []


@dataclass
class ToySubject:
    network: nn.Module
    images: Tensor
    target: Tensor
    task: object = field(default_factory=ClassificationTask)
    box: tuple[float, float] | None = None
    unit: str = "standard deviations of the z-scored image"
    name: str = "toy"
    cases: tuple[str, ...] = ("group",)

    @property
    def kind(self) -> str:
        return "segmentation" if isinstance(self.task, SegmentationTask) else "classification"

    def load(self, case: str) -> ToyCase:
        return ToyCase(case, self.images, self.target, self.network, self.task, self.box)


def _train(network: nn.Module, images: Tensor, target: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    optimiser = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(80):
        optimiser.zero_grad()
        loss(network(images), target).backward()
        optimiser.step()
    return network.eval()


@pytest.fixture(scope="module")
def classifier() -> ToySubject:
    """Two classes that differ by a soft bump in noise; a small network with pooling and batch norm."""
    torch.manual_seed(0)
    target = torch.arange(48) % 2
    images = torch.randn(48, 1, 8, 8)
    images[:, :, 2:6, 2:6] += 1.5 * (2 * target - 1).view(-1, 1, 1, 1)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 2)
    )
    return ToySubject(_train(network, images, target, F.cross_entropy), images, target)


@pytest.fixture(scope="module")
def segmenter() -> ToySubject:
    """Discs in noise."""
    torch.manual_seed(0)
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    centres = 5 + 6 * torch.rand(8, 2, 1, 1)
    target = (((row - centres[:, 0]) ** 2 + (column - centres[:, 1]) ** 2) < 16)[:, None].long()
    images = target + 0.5 * torch.randn(8, 1, 16, 16)
    images = (images - images.mean()) / images.std()
    task = SegmentationTask(loss=lambda output, label: F.cross_entropy(output, label[:, 0]))
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1))
    return ToySubject(_train(network, images, target, task.training_loss), images, target, task)


class Wrapped(nn.Module):
    """A network with something planted before and after it."""

    def __init__(self, network: nn.Module, before=lambda x: x, after=lambda y: y) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.network(self.before(x)))


def _planted(subject: ToySubject, **planted) -> ToySubject:
    return ToySubject(Wrapped(subject.network, **planted), subject.images, subject.target, subject.task)


def _evaluate(subject: ToySubject, steps: int = 40) -> list[Record]:
    """What the runner would find with white noise, PGD, APGD and Square."""
    case = subject.load("group")
    stop = "first_wrong" if subject.kind == "classification" else "lowest"
    attacked = {}
    for level in LEVELS:
        threat = case.threat(level)
        generator = torch.Generator().manual_seed(1)
        drawn = case.images + threat.random(case.images, threat.radius(case.images), generator, surface=True)
        attacked[level.key, "white noise"] = case.scores(drawn)
        plain = PGD(threat, steps, stop=stop, keep="strongest")
        attacked[level.key, "APGD-CE"] = case.scores(plain(case.network, case.images, case.target, case.task).images)
        automatic = APGD(threat, steps, until="wrong" if stop == "first_wrong" else "lowest")
        found = automatic(case.network, case.images, case.target, case.task, generator=generator)
        attacked[level.key, "SegPGD"] = case.scores(found.images)
        search = Square(threat, queries=100, until="wrong" if stop == "first_wrong" else "lowest")
        found = search(case.network, case.images, case.target, case.task, generator=generator)
        attacked[level.key, "Square"] = case.scores(found.images)
    records = plant("toy", case.scores(case.images), attacked)
    # The group is one case with many scores.
    return [Record(**{**vars(r), "case": "group"}) for r in records]


def _flags(subject: ToySubject, steps: int = 40) -> dict[str, Flag]:
    found = json.loads(json.dumps(probe(subject, LEVELS, steps=50)))
    return {f.name: f for f in find_flags(_evaluate(subject, steps), subject.kind, FAMILY, found)}


@pytest.fixture(autouse=True)
def _short_unbounded_attack(monkeypatch):
    monkeypatch.setattr(probes, "UNBOUNDED_STEPS", 20)


def _probed(subject: ToySubject) -> dict[str, bool | None]:
    found = json.loads(json.dumps(probe(subject, LEVELS, steps=2)))
    return {f.name: f.up for f in find_flags([], subject.kind, FAMILY, found)}


@pytest.mark.parametrize("name", ["classifier", "segmenter"])
def test_an_honest_model_raises_none(name, request):
    flags = _flags(request.getfixturevalue(name))
    assert {n: f.measured for n, f in flags.items() if f.up is not False} == {}
    assert verdict(flags.values()).word == "reliable"


def test_quantised_input_has_no_gradient_and_falls_to_random_search(classifier):
    flags = _flags(_planted(classifier, before=lambda x: (2 * x).round() / 2))
    assert flags["zero-gradients"].up
    assert flags["black-box"].up
    assert "100.0 % of the inputs" in flags["zero-gradients"].measured
    result = verdict(flags.values())
    assert result.word == "not reliable"
    assert "gradients are zero" in result.reasons


def test_saturated_softmax(classifier):
    flags = _probed(_planted(classifier, after=lambda y: (1e4 * y).softmax(1)))
    assert flags["zero-gradients"]
    assert flags["probabilities"]


def test_temperature_scaled_logits(classifier):
    flags = _probed(_planted(classifier, after=lambda y: 1e4 * y))
    assert flags["zero-gradients"]
    assert not flags["probabilities"]


def test_clipped_gradient(classifier):
    class Clip(torch.autograd.Function):
        """Passes on only gradients below a limit."""

        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, gradient):
            return torch.where(gradient.abs() < 1e-5, gradient, torch.zeros_like(gradient))

    assert _probed(_planted(classifier, before=Clip.apply))["zero-gradients"]


def test_clipped_input(segmenter):
    assert _probed(_planted(segmenter, before=lambda x: (50 * x).clamp(-1, 1)))["zero-gradients"]


def test_randomised_layer(classifier):
    flags = _probed(_planted(classifier, before=lambda x: x + 0.01 * torch.randn_like(x)))
    assert flags["repeat"]
    assert not _probed(classifier)["repeat"]


def test_the_probes_leave_the_model_and_the_random_stream_as_they_were(classifier):
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), copy.deepcopy(classifier.network)).train()
    before = {n: v.clone() for n, v in network.state_dict().items()}
    state = torch.random.get_rng_state()
    probe(ToySubject(network, classifier.images, classifier.target), LEVELS, steps=2)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert all(m.training for m in network.modules())


def test_batch_norm_in_training_mode(classifier):
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)).train()
    flags = _probed(ToySubject(network, classifier.images, classifier.target))
    assert flags["batch"]
    assert not _probed(classifier)["batch"]


def test_batch_statistics_in_eval_mode(segmenter):
    network = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), segmenter.network).eval()
    one = ToySubject(network, segmenter.images[:1], segmenter.target[:1], segmenter.task)
    assert _probed(one)["batch"]  # also for a single volume


def test_a_model_that_does_not_look_at_the_image_survives_without_a_bound(classifier):
    flags = _probed(_planted(classifier, after=lambda y: 0 * y + torch.tensor([1.0, 0.0])))
    assert flags["unbounded"]
    assert not _probed(classifier)["unbounded"]


def test_a_short_attack_leaves_something_for_a_longer_one(classifier):
    found = probe(classifier, LEVELS, steps=50)
    weak = [r for r in _evaluate(classifier) if r.attack in ("clean", "white noise")]
    assert longer(weak, "classification", found).up
    assert not longer(_evaluate(classifier), "classification", found).up
    assert longer(weak, "classification", {}).up is None


def _record_flags(noise_scores, pgd, square, clean=1.0, level="l2-3", cases=10):
    def answers(share):
        return [Score(f"c{i}", float(i < share * cases)) for i in range(cases)]

    table = {
        (level, "white noise"): answers(noise_scores),
        (level, "APGD-CE"): answers(pgd),
        (level, "Square"): answers(square),
    }
    return plant("m", answers(clean), table)


def test_square_may_not_beat_the_white_box_attacks():
    flag = black_box(_record_flags(0.9, 0.6, 0.5), "classification", FAMILY)
    assert flag.up
    assert "10.0 points more (L2 3)" in flag.measured
    assert black_box(_record_flags(0.9, 0.6, 0.6), "classification", FAMILY).up is False
    transfer = {"l2-3": {**FAMILIES, "Square": "transfer"}}
    assert black_box(_record_flags(0.9, 0.6, 0.5), "classification", transfer).up
    gradients_only = {"l2-3": {"APGD-CE": "white-box"}}
    assert black_box(_record_flags(0.9, 0.6, 0.5), "classification", gradients_only).up is None


def test_a_mixture_found_before_square_counts_for_the_white_box_attacks():
    clean = [Score("a", 0.9)]
    records = plant("m", clean, {("l2-5", "APGD-CE"): [Score("a", 0.5)], ("l2-5", "Square"): [Score("a", 0.45)]})
    assert black_box(records, "segmentation", {"l2-5": FAMILIES}).up
    mixed = [Record(**{**vars(r), "worst": (Score("a", 0.4),)}) if r.level else r for r in records]
    assert black_box(mixed, "segmentation", {"l2-5": FAMILIES}).up is False


def test_random_noise_may_not_do_what_the_attack_does():
    assert noise(_record_flags(0.6, 0.6, 0.6), FAMILY).up
    assert noise(_record_flags(0.8, 0.4, 0.4), FAMILY).up is False
    assert noise(_record_flags(0.0, 0.0, 0.0), FAMILY).up is False  # nothing left: the radius is simply large
    assert noise(_record_flags(1.0, 1.0, 1.0), FAMILY).up is False  # nothing lost
    assert noise(_record_flags(0.6, 0.6, 0.6), {"l2-3": {"APGD-CE": "white-box"}}).up is None


@pytest.mark.parametrize(("second", "up"), [(0.8, True), (0.405, False), (0.2, False)])
def test_the_score_may_not_rise_with_the_radius(second, up):
    table = {("l2-3", "APGD-CE"): [Score("a", 0.4)], ("l2-5", "APGD-CE"): [Score("a", second)]}
    records = plant("m", [Score("a", 0.9)], table)
    assert records[-1].worst[0].score == min(0.4, second)  # the worst case hides it
    assert monotone(records, FAMILY).up is up


def test_another_norm_or_unit_is_another_radius():
    table = {("l2-3", "APGD-CE"): [Score("a", 0.1)], ("linf-0.5", "APGD-CE"): [Score("a", 0.9)]}
    assert monotone(plant("m", [Score("a", 0.9)], table), FAMILY).up is False


def test_dead_gradients_of_the_attacks_are_counted():
    records = plant(
        "m", [Score(str(i), 0.9) for i in range(10)], {("l2-3", "APGD-CE"): [Score(str(i), 0.5) for i in range(10)]}
    )
    probed = {"zero_samples": 0.0, "zero_voxels": 0.0}
    assert zero_gradients(records, FAMILY, probed).up is False
    dead = [Record(**{**vars(r), "dead": int(r.case == "3")}) for r in records]
    flag = zero_gradients(dead, FAMILY, probed)
    assert flag.up
    assert "10.0 % of the attacked inputs" in flag.measured


@pytest.mark.parametrize(
    ("scale", "offset", "box", "unit", "word"),
    [
        (255, 0, (0.0, 1.0), "intensities", "lie outside the stated box"),
        (255, 0, None, "standard deviations of the z-scored image", "standard deviation is"),
        (255, 0, (0.0, 255.0), "intensities", "next to nothing"),
        (1, 0, (0.0, 255.0), "intensities", "less than a twentieth"),
        (0.05, 0, (0.0, 0.05), "intensities", "times the intensity range"),
    ],
)
def test_images_of_another_scale(classifier, scale, offset, box, unit, word):
    images = scale * torch.rand(classifier.images.shape, generator=torch.Generator().manual_seed(0)) + offset
    subject = ToySubject(classifier.network, images, classifier.target, box=box, unit=unit)
    flag = inputs(probe(subject, (Level("linf", 8 / 255), Level("linf", 0.08)), steps=1))
    assert flag.up
    assert word in flag.measured


def test_images_as_stated(classifier):
    images = torch.rand(classifier.images.shape, generator=torch.Generator().manual_seed(0))
    subject = ToySubject(classifier.network, images, classifier.target, box=(0.0, 1.0), unit="intensities in [0, 1]")
    assert inputs(probe(subject, (Level("linf", 8 / 255), Level("l2", 0.5)), steps=1)).up is False


def test_nothing_measured_is_not_fully_checked():
    flags = find_flags([], "segmentation", {})
    assert all(f.up is None for f in flags if f.name != "monotone")
    assert verdict(flags).word == "not fully checked"


def test_probes_are_repeatable_and_survive_json(segmenter):
    first, second = (probe(segmenter, LEVELS, seed=3, steps=3) for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first)) == first
    assert math.isclose(first["relative"]["linf-0.5"], 0.5 / (first["high"] - first["low"]), rel_tol=1e-6)
    assert first["threats"]["l2-3"] == "L2 radius 3 (= 0.188 RMS per voxel), no box"
