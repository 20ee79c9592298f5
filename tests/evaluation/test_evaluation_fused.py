"""``fuse``: attacks search on a copy, and everything that is reported is the network's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import monai_adv
from monai_adv.attacks import PGD
from monai_adv.certificates import Smoothing
from monai_adv.errors import InputError
from monai_adv.evaluation.codec import plain
from monai_adv.evaluation.evidence.verify import verify
from monai_adv.evaluation.models.protocol import Model
from monai_adv.evaluation.records import CLEAN, Level, Record
from monai_adv.evaluation.search import cost, runner
from monai_adv.evaluation.search.plan import Stage
from monai_adv.evaluation.search.runner import run_case
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import read_evaluation, read_records
from monai_adv.networks.fused import fused
from monai_adv.threats import Threat
from nnunet_trainers.evaluation.source import NNUNetSource
from tests.evaluation.test_evaluation_runner import open_store, plan_of, run_all
from tests.tiny_models import batch_normed, segmenter
from tests.tiny_nnunet import write_case, write_model

EPS = 0.04
ONE = EvaluationSettings((Level("linf", EPS),), "quick", batch_size=8)
FUSED = replace(ONE, fuse=True)


def from_the_image(kind: Any, version: Any, threat: Threat, classes: int) -> list[Stage]:
    """One attack that finds nothing where there is no gradient."""
    return [Stage("PGD", PGD(threat, 10, until="wrong"))]


def twice(kind: Any, version: Any, threat: Threat, classes: int) -> list[Stage]:
    return [Stage(name, PGD(threat, 10, until="lowest")) for name in ("first", "second")]


def robust() -> list[float]:
    """Of a linear network: right, and the margin is larger than the radius times the L1 norm of its weights."""
    model = batch_normed()
    network = model.network.double().eval()
    pixels = torch.eye(16, dtype=torch.float64).reshape(16, 1, 4, 4)
    zero = network(torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    weight = (network(pixels) - zero).T  # (2, 16)
    logits = network(model.images.double())
    margin = (logits[:, 0] - logits[:, 1]) * (1 - 2 * model.labels)
    found = (margin > EPS * (weight[0] - weight[1]).abs().sum()).double().tolist()
    assert 0 < sum(found) < 19
    return found


def scores(records: list[Record], name: str = "worst") -> list[float]:
    """Of the last attack."""
    last = records[-1].attack
    return [s.score for r in records if r.attack == last for s in getattr(r, name)]


def boxless() -> Any:
    model = batch_normed()
    model.box = None
    return model


class Constant(nn.Module):
    """In place of the copy: says the same whatever it sees, so that no attack finds its way."""

    def __init__(self, logits: tuple[float, ...]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: Tensor) -> Tensor:
        shape = () if x.shape[2:] == (4, 4) else x.shape[2:]
        logits = self.logits.reshape(1, -1, *[1] * len(shape)).expand(len(x), -1, *shape)
        return logits + 0 * x.sum()


def in_place_of_the_copy(monkeypatch: pytest.MonkeyPatch, network: nn.Module) -> None:
    monkeypatch.setattr(runner, "fused", lambda *_: network)


def test_the_closed_form_and_who_made_the_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All passes of the attacks are the copy's; the scores, and with them the figures, are the network's."""
    model, seen, copies = boxless(), {"copy": 0, "network": 0}, []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["network" if layer is model.network else "copy"] += len(inputs[0])

    def watched(network: nn.Module, images: Tensor) -> nn.Module:
        copied = fused(network, images)
        for who in seen:
            seen[who] -= len(images)  # to compare the two
        copies.append(copied)
        return copied

    model.network.register_forward_pre_hook(count)  # its copy has it as well
    monkeypatch.setattr(runner, "fused", watched)
    records = run_all(tmp_path, model, FUSED)
    assert scores(records) == robust()
    assert len(copies) == len(model.cases)
    made = sum(r.forward for r in records if r.attack != CLEAN)
    assert made == seen["copy"] > 500
    images = len(model.images)
    assert seen["network"] <= cost.SCORING * images * len({r.attack for r in records}) + cost.PICTURES * images
    exact = run_all(tmp_path / "exact", boxless(), ONE)
    assert scores(exact) == robust()


def test_no_scores_come_from_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that says class 0 to everything: nothing is found where that is right. Where it is wrong it claims every
    image at once; then the network says otherwise, and the attack is made on it."""
    in_place_of_the_copy(monkeypatch, Constant((1.0, 0.0)))
    model = boxless()
    records = run_all(tmp_path, model, FUSED, from_the_image)
    right = [float(s.score) for r in records if r.attack == CLEAN for s in r.own]
    expected = [r if label == 0 else e for r, e, label in zip(right, robust(), model.labels.tolist(), strict=True)]
    assert scores(records) == scores(records, "own") == expected != robust()


@pytest.mark.parametrize("shift", [0.05, -0.05])
def test_a_boundary_that_is_not_quite_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float) -> None:
    """Nearer, the copy claims images that the network still gets right, and the search goes on behind them; further
    away, it misses some that the network gets wrong, and they count."""

    class Shifted(nn.Module):
        def __init__(self, network: nn.Module, images: Tensor) -> None:
            super().__init__()
            self.network = network
            copies.append(self)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.network(x)
            return logits - shift * torch.nn.functional.one_hot(logits.argmax(1), 2)

    copies: list[nn.Module] = []
    monkeypatch.setattr(runner, "fused", Shifted)
    records = run_all(tmp_path, boxless(), FUSED, from_the_image)
    assert copies
    assert scores(records) == robust()


@pytest.mark.parametrize(("make", "logits"), [(boxless, (float("nan"), 0.0)), (segmenter, (1.0, 0.0))])
def test_a_claim_that_only_the_copy_makes_ends_no_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[], Model], logits: tuple[float, ...]
) -> None:
    """NaN, or no foreground at all: a copy on which every input is finished. The numbers are the network's."""
    plan = from_the_image if make is boxless else twice
    expected = run_all(tmp_path / "exact", make(), ONE, plan)
    in_place_of_the_copy(monkeypatch, Constant(logits))
    found = run_all(tmp_path / "fused", make(), FUSED, plan)
    for one, other in zip(expected, found, strict=True):
        assert repr((one.own, one.worst, one.broken)) == repr((other.own, other.worst, other.broken))
        assert one.attacked == other.attacked
        assert one.largest == other.largest
        if one.attacked:  # what the copy cost is counted
            assert other.forward > one.forward
    assert sum(s.score < 1 for r in found[-1:] for s in r.worst) > 0


def test_slices_that_share_a_dice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No score of its own tells whether a slice is finished: the network is asked, here after a copy that gives NaN."""
    write_case(tmp_path)
    folder = write_model(tmp_path / "model")

    def model() -> Model:
        return NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr")).open()

    settings = EvaluationSettings((Level("linf", 0.5),), "quick")
    expected = run_all(tmp_path / "exact", model(), settings, twice)
    assert len(model().load("case").images) > len(expected[-1].own) == 1
    in_place_of_the_copy(monkeypatch, Constant((float("nan"),) * (1 + len(model().classes))))
    found = run_all(tmp_path / "fused", model(), replace(settings, fuse=True), twice)
    assert [(r.own, r.worst, r.attacked) for r in found] == [(r.own, r.worst, r.attacked) for r in expected]
    assert found[1].worst[0].remaining < found[0].worst[0].remaining - 0.1  # the copy alone finds nothing


def test_off_is_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> nn.Module:
        raise AssertionError("no copy was asked for")

    monkeypatch.setattr(runner, "fused", never)
    run_all(tmp_path, batch_normed(), ONE)
    assert "fuse" not in plain(ONE.entry())
    assert "fuse" not in (tmp_path / "evaluation.json").read_text()
    assert plain(FUSED.entry())["fuse"] is True


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fuse": "yes"}, "fuse: received 'yes', allowed is True or False"),
        (
            {"fuse": True, "smooth": Smoothing(0.25), "levels": (Level("l2", 1.0, "norm"),)},
            "fuse: received True, allowed is given without smooth; a last digit can turn a whole vote",
        ),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        EvaluationSettings(**{"levels": ONE.levels, **arguments})


def test_the_bound_holds_and_the_copy_is_timed(tmp_path: Path) -> None:
    """The clock moves with passes of the network only: the attacks' are free, scoring is not."""
    model = batch_normed()
    case, now = model.load(model.cases[0]), [0.0]

    def tick(layer: nn.Module, _: Any) -> None:
        now[0] += 3.0 * (layer is model.network)

    model.network.register_forward_pre_hook(tick)
    timing = cost.measure(case, 4, clock=lambda: now[0], fuse=True)
    assert (timing.forward, timing.backward) == (0.0, 0.0)
    assert timing.scoring * case.images.numel() == pytest.approx(3.0)
    exact = cost.measure(case, 4, clock=lambda: now[0])
    assert exact.forward * case.images[0].numel() == pytest.approx(3.0)

    plan = plan_of(model, FUSED)
    sizes = [cost.Size(len(case.images), 1)]
    bounds = [cost.bound(plan.most_passes(), sizes, timing, fuse=fuse).forward for fuse in (True, False)]
    assert bounds[0] - bounds[1] == len(plan.names(FUSED.levels[0])) * len(case.images)
    run_case(model, model.cases[0], plan, open_store(tmp_path, (model, plan)))
    assert cost.measured(read_records(tmp_path)).forward <= bounds[0]


@pytest.fixture(scope="module")
def given() -> dict[str, Any]:
    model = batch_normed()
    data = {"images": model.images, "labels": model.labels}
    return {"model": model.network, **data, "norm": "linf", "eps": EPS, "attacks": "quick", "threads": 1}


def test_from_python_to_the_page(tmp_path: Path, given: dict[str, Any]) -> None:
    before = {name: value.clone() for name, value in given["model"].state_dict().items()}
    layers = list(given["model"])
    found = monai_adv.evaluate(**given, fuse=True, folder=tmp_path / "out")
    frame = found.frame().query("attack == 'worst case' and measure == 'score' and eps == @EPS")
    assert frame.set_index("case").value[[str(i) for i in range(20)]].tolist() == robust()
    assert all(torch.equal(given["model"].state_dict()[name], value) for name, value in before.items())
    assert all(a is b for a, b in zip(given["model"], layers, strict=True))
    assert read_evaluation(tmp_path / "out").settings.fuse
    assert json.loads((tmp_path / "out" / "evidence.json").read_text())["measurement"]["settings"]["fuse"] is True
    assert not [line for line in verify(tmp_path / "out") if line.outcome == "FAILED"]
    said = "the attacks searched on a copy of the network with BatchNorm folded into its convolutions"
    assert said in (tmp_path / "out" / "report.html").read_text()
    with pytest.raises(
        InputError, match=r"holds another evaluation; it differs in settings.fuse: true there, null now"
    ):
        monai_adv.evaluate(**given, folder=tmp_path / "out")
    again = monai_adv.evaluate(**given, fuse=True, folder=tmp_path / "out")
    assert again.frame().equals(found.frame())


def test_a_network_without_batch_norm_leaves_nothing(tmp_path: Path, given: dict[str, Any]) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(InputError, match="Sequential: fuse: received 'no BatchNorm right after a convolution'"):
        monai_adv.evaluate(**{**given, "model": network}, fuse=True, folder=tmp_path / "out")
    assert not list(tmp_path.rglob("records"))
