"""The segmentation ensemble: what it costs, exact worst case of each sample, survivors, monotone in the radius."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from monai_adv import InputError, Threat
from monai_adv.attacks import segmentation_ensemble
from monai_adv.attacks.base import continued
from monai_adv.attacks.ensemble import Stage
from monai_adv.attacks.relay import Relay
from monai_adv.attacks.segmentation_ensemble import VERSIONS, SegmentationEnsemble, stages
from monai_adv.tasks import SegmentationSettings, SegmentationTask
from monai_adv.threats import per_sample
from tests.voxel_networks import Voxelwise, judge, problem, seed

THREATS = [Threat("l2", 1.0, unit="norm"), Threat("linf", 0.12)]


def short(threat: Threat, version: Any = "standard") -> tuple[Stage, ...]:
    """The stages of a version with a tenth of their steps."""
    found = []
    for stage in stages(threat, version):
        settings = {f.name: getattr(stage.attack, f.name) for f in fields(stage.attack)}  # type: ignore[arg-type]
        for name in ("steps", "queries"):
            if name in settings:
                settings[name] = max(settings[name] // 10, 5)
        if isinstance(stage.attack, Relay):
            settings["phases"] = tuple(replace(p, steps=max(p.steps // 10, 5)) for p in stage.attack.phases)
        found.append(Stage(stage.name, type(stage.attack)(**settings)))
    return tuple(found)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_ensemble, "stages", short)


@pytest.mark.parametrize("threat", THREATS, ids=str)
def test_what_a_sample_costs_that_never_finishes(threat: Threat) -> None:
    """Gradient steps, and queries of the random search."""
    for version, steps, queries in (("quick", 40, 0), ("standard", 300, 200), ("full", 1400, 1000)):
        found = stages(threat, version)  # type: ignore[arg-type]
        backward = sum(s.attack.most_passes().backward_input for s in found)
        random = sum(s.attack.most_passes().forward for s in found if s.attack.most_passes().backward_input == 0)
        assert backward == steps
        assert random == (queries + 1 + queries // 10 if queries else 0)  # the start, and what looking ahead may waste
        assert len({s.name for s in found}) == len(found)
        assert all(s.attack.threat == threat for s in found)


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("dims", [2, 3])
def test_exact_worst_case_of_each_sample(dims: int, threat: Threat) -> None:
    network, images, target = problem(dims)
    result = SegmentationEnsemble(threat)(network, images, target, judge(), generator=seed())
    assert bool((result.margin > judge().lowest_margin).all())  # so every stage saw every sample
    generator = seed()
    margins = judge().margin(network(images), target).to(result.margin)[None]
    worst = images.clone()  # where a polish starts
    for stage in short(threat):
        found = continued(stage.attack, network, images, target, judge(), worst=worst, generator=generator)
        better = found.margin < margins.amin(0)
        worst = torch.where(per_sample(better, images), found.images, worst)
        margins = torch.cat([margins, found.margin[None]])
    torch.testing.assert_close(result.margin, margins.amin(0))
    assert torch.equal(result.stage, margins.argmin(0))
    torch.testing.assert_close(judge().margin(network(result.images), target).to(result.margin), result.margin)
    assert (threat.size(result.images - images) <= float(threat.eps) * (1 + 1e-9)).all()  # type: ignore[arg-type]


@pytest.mark.usefixtures("quickly")
def test_finished_samples_see_no_further_stage() -> None:
    """Two of three samples can be lost entirely; the third has a voxel that is out of reach."""
    images = torch.tensor([[[[0.1, 0.1, -3.0]]], [[[0.2, 0.1, -3.0]]], [[[9.0, 0.1, -3.0]]]], dtype=torch.float64)
    target = (images > 0).long()
    result = SegmentationEnsemble(Threat("linf", 0.4))(Voxelwise(), images, target, judge(), generator=seed())
    assert [s.attacked for s in result.summary] == [3, 3, 1, 1, 1, 1, 1]
    assert result.margin.tolist() == pytest.approx([-0.6, -0.6, 2 / 3 - 0.6])


@pytest.mark.usefixtures("quickly")
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_stronger_than_each_of_its_parts_and_monotone_in_the_radius(norm: Any) -> None:
    network, images, target = problem(2, count=8)
    means = []
    for eps in (0.5, 1.0, 2.0) if norm == "l2" else (0.05, 0.1, 0.2):
        result = SegmentationEnsemble(Threat(norm, eps, unit="norm"))(
            network, images, target, judge(), generator=seed()
        )
        for stage in short(Threat(norm, eps, unit="norm")):
            alone = stage.attack(network, images, target, judge(), generator=seed())
            assert float(result.margin.mean()) <= float(alone.margin.mean()) + 0.02  # other random starts
        means.append(float(result.margin.mean()))
    assert means[0] > means[1] > means[2]


class Rounded(nn.Module):
    """A network whose first layer rounds: its gradient is zero everywhere."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network((4 * x).round() / 4)
        return logits


@pytest.mark.usefixtures("quickly")
def test_without_gradients_the_random_search_still_finds_something() -> None:
    network, images, target = problem(2)
    masked = Rounded(network)
    target = masked(images).argmax(1, keepdim=True)
    result = SegmentationEnsemble(Threat("linf", 0.5))(masked, images, target, judge(), generator=seed())
    assert result.dead.all()
    assert bool((result.margin < 0.4 - 1e-6).all())
    assert result.summary[int(result.stage.mode().values)].name == "Square"


@pytest.mark.usefixtures("quickly")
def test_slices_without_foreground_are_lost_by_false_positives() -> None:
    images = torch.full((1, 1, 2, 3), -0.1, dtype=torch.float64)
    target = torch.zeros_like(images).long()
    skipping = SegmentationTask(lambda o, t: o.mean(), SegmentationSettings())
    assert not skipping.scorable(target).any()
    result = SegmentationEnsemble(Threat("linf", 0.2))(Voxelwise(), images, target, judge(), generator=seed())
    assert result.wrong.all()
    assert (result.images > 0).any()


def test_unknown_version_is_refused() -> None:
    with pytest.raises(InputError, match="quick, standard, full"):
        SegmentationEnsemble(Threat("l2", 1.0, unit="norm"), "best")  # type: ignore[arg-type]
    assert VERSIONS == ("quick", "standard", "full")
