"""Cost: nothing costs more passes than the bound, and a pilot tells the rest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from monai_adv.attacks.pgd import PGD
from monai_adv.certificates import Smoothing
from monai_adv.evaluation.models.smoothed import SmoothedVersion
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.run.workers import Job
from monai_adv.evaluation.search import cost
from monai_adv.evaluation.search.cost import Cost, Size, Timing
from monai_adv.evaluation.search.runner import run_case
from monai_adv.evaluation.search.variations import checked_steps, measured
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import read_records
from monai_adv.threats import Threat
from nnunet_trainers.evaluation.source import NNUNetSource
from tests.evaluation.test_evaluation_runner import open_store, plan_of, run_all
from tests.tiny_models import classifier, segmenter
from tests.tiny_nnunet import write_case, write_model


class _Counter:
    """Counts the inputs of a network."""

    def __init__(self, network: nn.Module) -> None:
        self.forward = 0
        network.register_forward_pre_hook(self._count)

    def _count(self, _: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.forward += len(inputs[0])


@pytest.mark.parametrize("make", [classifier, segmenter])
@pytest.mark.parametrize("attacks", ["quick", "standard"])
def test_no_evaluation_makes_more_passes_than_its_bound(tmp_path: Path, make, attacks) -> None:  # type: ignore[no-untyped-def]
    model = make()
    settings = EvaluationSettings((Level("l2", 0.002, unit="norm"),), attacks)
    sizes = [Size(len(model.load(c).images), 1) for c in model.cases[:1]]
    plan = plan_of(model, settings)
    corruptions = 27 if attacks == "standard" else 0
    bound = cost.bound(plan.most_passes(), sizes, Timing(0.0, 0.0), corruptions)
    counter = _Counter(model.network)
    store = open_store(tmp_path, (model, plan))
    run_case(model, model.cases[0], plan, store)
    spent = cost.measured(read_records(tmp_path))
    assert spent.forward <= counter.forward <= bound.forward
    assert spent.backward <= bound.backward
    # At a radius so small hardly anything is finished early: the bound is no empty promise. (In L-inf, Square
    # leaves out what it has judged.)
    assert counter.forward > 0.5 * bound.forward


def test_natural_variations_make_the_passes_that_are_counted(tmp_path: Path) -> None:
    """Slices of an nnU-Net share a Dice: a changed file is predicted as it is opened, and once more for its score."""
    write_case(tmp_path)
    folder = write_model(tmp_path / "model")
    model = NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr")).open()
    chosen = checked_steps(("mri:bias_field",), model)
    assert len(chosen) == 4
    size = Size(len(model.load("case").images), 1)
    assert size.inputs > 1
    counter = _Counter(model.network)
    for step in chosen:
        measured(model, "case", step, seed=0)
    with_them, without = (cost.bound({}, [size], Timing(0.0, 0.0), variations=n).forward for n in (4, 0))
    assert counter.forward == with_them - without == 4 * 2 * size.inputs
    counter.forward = 0
    case = model.load("case")
    assert counter.forward == cost.OPENED * size.inputs
    case.scores(case.images)
    assert counter.forward == cost.VARIED * size.inputs


@pytest.mark.parametrize("size", [(16, 12), (8, 12, 8)])
def test_noise_leaves_no_background_to_be_cut_off_and_is_priced_so(tmp_path: Path, size: tuple[int, ...]) -> None:
    """Of 9 slices 2 on either side are dark: 5 are left of the file, and all 9 of it with Rician noise."""
    write_case(tmp_path, rim=3)
    folder = write_model(tmp_path / "model", size)
    source = NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"))
    words = ("mri:rician_noise",)
    settings = EvaluationSettings((Level("l2", 0.1),), "quick", variations=words)
    job = Job("run", source, settings, str(tmp_path))
    model = job._model()
    own, varied = job.survey("case")
    assert isinstance(own, Size)
    assert isinstance(varied, Size)
    steps = checked_steps(words, model)
    counter = _Counter(model.network)  # type: ignore[attr-defined]
    found = [measured(model, "case", step, seed=0)[0] for step in steps]
    bound = cost.bound({}, [own], Timing(0.0, 0.0), variations=4, varied=[varied]).forward
    bound -= cost.bound({}, [own], Timing(0.0, 0.0)).forward
    assert {record.forward for record in found} == {varied.inputs}
    assert varied.voxels > own.voxels
    if len(size) == 2:  # whose inputs are slices
        assert (own.inputs, varied.inputs) == (5, 9)
        assert counter.forward == bound == cost.VARIED * 4 * varied.inputs
    assert sum(record.forward for record in found) <= bound


def test_what_certifies_a_smoothed_model_is_priced_with_its_attacks(tmp_path: Path) -> None:
    """Many draws that count, few that vote: the certificates cost more than all attacks."""
    smooth = Smoothing(0.1, n0=30, n=600, draws=3)
    base = classifier()
    settings = EvaluationSettings((Level("l2", 0.002, unit="norm"), Level("l2", 0.004, unit="norm")), "quick",
                                  smooth=smooth)  # fmt: skip
    model = SmoothedVersion(base, smooth)
    plan = plan_of(model, settings)
    sizes = [Size.of(model.load(base.cases[0]))]
    counter = _Counter(base.network)
    run_case(model, base.cases[0], plan, open_store(tmp_path, (model, plan)))
    bound, attacks = (cost.bound(plan.most_passes(), sizes, Timing(0.0, 0.0), smooth=s) for s in (smooth, None))
    most, least = (smooth.draws * (c.forward + c.backward) for c in (bound, attacks))  # a gradient draws once more
    assert most > counter.forward > 2 * least
    assert counter.forward > 0.8 * most


def test_what_the_records_count_is_what_the_network_sees(tmp_path: Path) -> None:
    model = classifier()
    counter = _Counter(model.network)
    records = run_all(tmp_path, model, EvaluationSettings((Level("linf", 0.03),), "quick"))
    # A classifier needs no pass to aim.
    scoring = (cost.SCORING - 1) * sum(len(r.own) for r in records if r.level and r.attacked)
    rest = 20 * (cost.CLEAN - 1 + 1)  # the clean scores, and the pictures
    assert counter.forward == cost.measured(records).forward + scoring + rest


def test_the_cost_of_a_case_is_in_proportion_to_its_voxels() -> None:
    sizes = {"a": Size(1, 100), "b": Size(2, 300), "c": Size(1, 50), "d": Size(1, 50)}
    assert cost.predict({"a": 10.0, "b": 30.0}, sizes) == pytest.approx(50.0)
    assert cost.predict({"a": 12.0, "b": 28.0}, sizes) == pytest.approx(50.0)


def test_scores_are_priced_as_scores() -> None:
    """PGD of 10 steps: 11 forwards and 10 backwards of 0.1 s, and 10 scorings of 1 s."""
    most = {"l2-1": [PGD(Threat("l2", 1.0, unit="norm"), steps=10).most_passes()]}
    found = cost.bound(most, [Size(inputs=1, voxels=100)], Timing(0.001, 0.001, 0.01))
    assert (found.forward, found.backward) == (21, 10)
    assert found.seconds == pytest.approx(1.1 + 1.0 + 10)


def test_full_batches_and_single_inputs_are_timed_and_the_dearer_counts() -> None:
    """A clock that the network moves: a pass costs 3 s whatever it holds."""
    now = [0.0]
    case = classifier().load(classifier().cases[0])
    counts: list[int] = []

    def passes(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        counts.append(len(inputs[0]))
        now[0] += 3.0

    case.network.register_forward_pre_hook(passes)
    timing = cost.measure(case, 4, clock=lambda: now[0])
    each = case.images[0].numel()
    assert set(counts) >= {1, 4}
    assert timing.forward == pytest.approx(3.0 / each)  # of a single input; a full batch would be a quarter
    assert timing.backward == pytest.approx(0.0)  # the clock stands still in it
    assert timing.scoring * case.images.numel() == pytest.approx(3.0)


def test_costs_add_up() -> None:
    assert Cost(1, 2, 3.0) + Cost(10, 20, 30.0) == Cost(11, 22, 33.0)


def test_timing_is_per_voxel_and_leaves_the_network_alone() -> None:
    case = segmenter().load("0")
    before = [p.clone() for p in case.network.parameters()]
    timing = cost.measure(case, 64)
    assert timing.forward > 0
    assert timing.backward >= 0
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(case.network.parameters(), before, strict=True))
