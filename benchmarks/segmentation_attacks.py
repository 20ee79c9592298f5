"""Our segmentation ensemble against published attacks: same model, same whole volumes, same radius, no clamp.

    pip install adv-lib                                  # in an environment of the benchmark's own
    export nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=...        # see benchmarks/hippocampus.py
    python benchmarks/segmentation_attacks.py --l2 3 5 --linf 0.1 --cases 4 --output peers.json

Every attack gets all slices of a volume, each with the full radius, and is scored by the mean Dice of the whole volume
in its original geometry. Lower is stronger. The peers are

* from adv-lib: ALMA-prox, DAG, PDGD, PDPGD, ASMA. They look for the smallest perturbation and have no radius, so what
  they return is brought to it in two ways: projected (kept as it is if inside), and scaled to the radius. Of each slice
  the version that is worse for the volume counts.
* published losses on our own loop, run as published: all steps for all slices, the last iterate (PGD, SegPGD, CosPGD)
  or the one of the lowest accuracy (SEA) returned.

adv-lib clamps to [0, 1], which would destroy z-scored scans. It sees ``(x - low) / (high - low)`` with one low and high
per volume, so far outside that no image within the radius touches them (checked). Step sizes that are meant for images
in [0, 1] are given in units of the volume's own intensity range.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.base import Attack
from monai_adv.attacks.cospgd import CosPGD
from monai_adv.attacks.losses import cross_entropy
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.sea import SEA
from monai_adv.attacks.segpgd import SegPGD
from monai_adv.evaluation.plans import stages
from monai_adv.evaluation.runner import run_case
from monai_adv.evaluation.settings import VERSIONS, EvaluationSettings, Version
from monai_adv.evaluation.store import Store
from monai_adv.evaluation.subject import Level
from monai_adv.tasks import Output, SegmentationTask, Target
from monai_adv.threats import Norm, Threat, per_sample
from nnunet_trainers.evaluation.case import NNUNetCase
from nnunet_trainers.evaluation.source import NNUNetSource, NNUNetSubject

DATASET = "Dataset004_Hippocampus"
SEED = 0
ROOM = 10.0
"""How far beyond image and radius the peers' [0, 1] reaches, in network units."""


@dataclass(frozen=True)
class Row:
    """One attack on one case.

    Attributes:
        norm, eps: of the threat.
        attack, ours: its name, and whether it is one of our ensembles.
        case: the patient.
        dice: mean over the classes of the whole volume, 0 to 1.
        passes: network passes per slice (a backward for the input counts as one); NaN for peers.
        seconds: wall clock.
        largest: largest perturbation of a slice as a share of the radius.
    """

    norm: Norm
    eps: float
    attack: str
    ours: bool
    case: str
    dice: float
    passes: float
    seconds: float
    largest: float


class Accuracy(SegmentationTask):
    """Judges a slice by its share of right voxels, as the published attacks do; nothing is ever finished."""

    lowest_margin: float

    def __init__(self, task: SegmentationTask) -> None:
        super().__init__(task.training_loss, task.settings, regions=task.regions, ignore_label=task.ignore_label)
        self.lowest_margin = -1.0

    @torch.no_grad()
    def margin(self, output: Output, target: Target) -> Tensor:
        """``(B,)`` share of right points."""
        points = self.points(output, target)
        return points.mean((points.logits.argmax(1) == points.labels).float())


class OnUnitRange(nn.Module):
    """The network for a library that wants images in [0, 1]."""

    def __init__(self, network: nn.Module, low: float, high: float) -> None:
        super().__init__()
        self.network, self.low, self.high = network, low, high

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x * (self.high - self.low) + self.low)
        return logits


# ---------------------------------------------------------------- what is compared


def evaluated(name: Version, subject: NNUNetSubject, case: NNUNetCase, threat: Threat) -> Row:
    """What ``monai-adv evaluate --attacks NAME`` finds."""
    level = Level(threat.norm, float(threat.eps))
    settings = EvaluationSettings((level,), name, SEED, threads=torch.get_num_threads())
    begin = time.perf_counter()
    with TemporaryDirectory() as folder:
        store = Store(folder)
        if not run_case(subject, case.name, settings, store):
            raise RuntimeError(f"{case.name} could not be evaluated")
        saved = [
            store.saved(subject.name, case.name, level.key, stage.name)
            for stage in stages("segmentation", name, threat, len(subject.classes))
        ]
    seconds = time.perf_counter() - begin
    attacks = [s.record for s in saved if s is not None]
    for record in attacks:
        print(f"    {case.name} {name} {record.attack}: {100 * record.own[0].score:.2f}", flush=True)
    passes = sum(r.forward + r.backward for r in attacks) / len(case.images)
    largest = max(r.largest for r in attacks)
    dice = attacks[-1].worst[0].score
    return Row(level.norm, level.eps, f"ours, {name}", True, case.name, dice, passes, seconds, largest)


def published(attack: Attack, case: NNUNetCase, threat: Threat) -> tuple[Tensor, float]:
    """An attack of ours with the settings of its paper."""
    generator = torch.Generator().manual_seed(SEED)
    result = attack(case.network, case.images, case.target, Accuracy(case.task), generator=generator)
    return result.images, result.passes.in_forwards() / len(case.images)


def peer(
    attack: Callable[..., Tensor], options: dict[str, Any], case: NNUNetCase, threat: Threat
) -> tuple[Tensor, float]:
    """An attack of adv-lib, its images brought to the radius."""
    images, eps = case.images, float(threat.eps)
    lowest, highest = (float(v) for v in images.aminmax())
    low, high = lowest - eps - ROOM, highest + eps + ROOM
    rate = (highest - lowest) / (high - low)
    scaled = {k: v * rate if k in ("lr_init", "γ", "primal_lr") else v for k, v in options.items()}
    labels: Tensor = case.target[:, 0]  # type: ignore[call-overload]
    # They want 99 % of the voxels wrong. Of all voxels that is out of reach within a small radius, and then they return
    # the clean image; of the foreground it is what the Dice asks for. Slices without foreground: all voxels.
    wanted = labels > 0
    wanted |= ~wanted.flatten(1).any(1).view(-1, *[1] * (labels.ndim - 1))
    torch.manual_seed(SEED)
    found = attack(OnUnitRange(case.network, low, high), (images - low) / (high - low), labels, masks=wanted, **scaled)
    delta = (found.detach() * (high - low) + low - images).nan_to_num()
    size = per_sample(threat.size(delta), delta)
    projected = threat.project(delta, images, threat.radius(images))
    to_radius = torch.where(size > 0, delta * (eps / size.clamp(min=1e-12)), delta)
    result = case.combine(images + projected, images + threat.project(to_radius, images, threat.radius(images)))
    assert float(result.min()) > low
    assert float(result.max()) < high  # the clamp was never in the way
    return result, math.nan


def peers_at(threat: Threat, steps: int) -> dict[str, Callable[..., Any]]:
    """name -> function of the case."""
    last: dict[str, Any] = {"steps": steps, "keep": "last", "stop": "never"}
    plain: dict[str, Attack] = {
        f"PGD-{steps}, CE": PGD(threat, loss=cross_entropy, **last),
        f"PGD-{steps}, soft Dice": PGD(threat, **last),
        f"SegPGD-{steps}": SegPGD(threat, **last),
        f"CosPGD-{steps}": CosPGD(threat, **last),
        "APGD-100, CE": APGD(threat, 100, cross_entropy, until="lowest"),
        "APGD-100, soft Dice": APGD(threat, 100, until="lowest"),
        "SEA, 3 x 300": SEA(threat),
    }
    table: dict[str, Callable[..., Any]] = {
        name: partial(published, attack, threat=threat) for name, attack in plain.items()
    }
    try:
        from adv_lib.attacks import segmentation as advlib  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        print("adv-lib is not installed: its attacks are left out")
        return table
    peers: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]]
    if threat.norm == "l2":
        peers = {
            "DAG-200, L2": (advlib.dag, {"p": 2, "γ": 0.5}),
            "PDGD-500": (advlib.pdgd, {"primal_lr": 0.1}),
            "PDPGD-500, L2": (advlib.pdpgd, {"norm": 2, "primal_lr": 0.1}),
            "ASMA-1000": (advlib.asma, {}),
        }
    else:
        peers = {
            "DAG-200, L-inf": (advlib.dag, {"p": math.inf, "γ": 0.5 / 255}),
            "ALMA-prox-500": (advlib.alma_prox, {"lr_init": 0.001}),
            "PDPGD-500, L-inf": (advlib.pdpgd, {"norm": math.inf, "primal_lr": 0.1}),
        }
    return table | {name: partial(peer, *both, threat=threat) for name, both in peers.items()}


# ---------------------------------------------------------------- running and telling


def measure(case: NNUNetCase, threat: Threat, name: str, attack: Callable[..., Any]) -> Row:
    """Attack a case, check the budget, score the volume."""
    begin = time.perf_counter()
    images, passes = attack(case=case)
    seconds = time.perf_counter() - begin
    largest = float(threat.size(images.double() - case.images.double()).max()) / float(threat.eps)
    if not largest <= 1 + 1e-5:
        raise RuntimeError(f"{name} left the radius: {largest}")
    dice = case.scores(images)[0].score
    return Row(threat.norm, float(threat.eps), name, False, case.name, dice, passes, seconds, largest)


def table(rows: list[Row]) -> str:
    """Markdown: a row per attack, strongest first, for each threat."""
    lines = []
    for norm, eps in dict.fromkeys((r.norm, r.eps) for r in rows):
        here = [r for r in rows if (r.norm, r.eps) == (norm, eps)]
        lines += [f"### {norm} radius {eps:g}, {len({r.case for r in here})} cases", ""]
        lines += [
            "| attack | mean Dice % | largest of a case | passes per slice | seconds per case |",
            "|---|---|---|---|---|",
        ]
        means = []
        for name in dict.fromkeys(r.attack for r in here):
            of = [r for r in here if r.attack == name]
            dice, passes, seconds = (
                sum(getattr(r, field) for r in of) / len(of) for field in ("dice", "passes", "seconds")
            )
            means.append((dice, name, of, passes, seconds))
        for dice, name, of, passes, seconds in sorted(means, key=lambda m: m[0]):
            shown = f"**{name}**" if of[0].ours else name
            told = "" if math.isnan(passes) else f"{passes:.0f}"
            largest = 100 * max(r.dice for r in of)
            lines.append(f"| {shown} | {100 * dice:.2f} | {largest:.1f} | {told} | {seconds:.0f} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Measure and write after every attack, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainer", default="nnUNetTrainer")
    parser.add_argument("--plans", default="nnUNetPlansCPU")
    parser.add_argument("--configuration", default="2d")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--checkpoint", default="checkpoint_final.pth")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", type=int, help="the first so many validation cases; default: all")
    parser.add_argument("--l2", type=float, nargs="*", default=[])
    parser.add_argument("--linf", type=float, nargs="*", default=[])
    parser.add_argument("--versions", nargs="*", default=["quick", "standard"], choices=VERSIONS)
    parser.add_argument("--steps", type=int, default=100, help="of PGD, SegPGD and CosPGD")
    parser.add_argument("--only", nargs="*", help="attacks whose name contains one of these words")
    parser.add_argument("--output", type=Path, required=True, help="JSON, a row per attack and case")
    arguments = parser.parse_args()

    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    names = json.loads((folder / "splits_final.json").read_text())[arguments.fold]["val"][: arguments.cases]
    raw = Path(os.environ["nnUNet_raw"]) / DATASET
    model = f"{arguments.trainer}__{arguments.plans}__{arguments.configuration}"
    source = NNUNetSource(
        str(Path(os.environ["nnUNet_results"]) / DATASET / model), str(raw / "imagesTr"), str(raw / "labelsTr"),
        folds=(arguments.fold,), checkpoint=arguments.checkpoint, cases=tuple(names), device=arguments.device,
    )  # fmt: skip
    subject = source.open()
    rows: list[Row] = []
    threats = [Threat("l2", e) for e in arguments.l2] + [Threat("linf", e) for e in arguments.linf]
    for name in names:
        case = subject.load(name)
        for threat in threats:
            ours = {f"ours, {v}": partial(evaluated, v, subject, case, threat) for v in arguments.versions}
            peers = {k: partial(measure, case, threat, k, v) for k, v in peers_at(threat, arguments.steps).items()}
            for attack, function in {**ours, **peers}.items():
                if arguments.only and not any(word in attack for word in arguments.only):
                    continue
                row = function()
                print(f"{name} {threat.describe()} {attack}: {100 * row.dice:.2f} in {row.seconds:.0f} s", flush=True)
                rows.append(row)
                record = {"model": model, "torch": torch.__version__, "adv-lib": advlib_version()}
                arguments.output.write_text(json.dumps({**record, "rows": [asdict(r) for r in rows]}, indent=1))
    print("\n" + table(rows))


def advlib_version() -> str | None:
    """Of the installed adv-lib."""
    try:
        return version("adv-lib")
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
