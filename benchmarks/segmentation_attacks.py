"""Does any attack end below ``standard``? Same networks, same images, same radius, nothing clamped.

    pip install adv-lib                                             # in an environment of the benchmark's own
    python benchmarks/busi.py ...                                   # the two BUSI networks, see there
    python benchmarks/segmentation_attacks.py --data .../data --weights .../busi --output segmentation_attacks.json \
        --targets busi_plain busi_robust --cases 8

Every attack is scored by the mean Dice as a report has it, per patient; lower is stronger. It can be stopped and goes
on where it was. Against ours stand

* plain PGD with momentum, 400 steps of a falling size, 5 starts, on the soft Dice, on a Dice that grows sharp, and on a
  hinge of the voxels' margins, each aimed at what the report scores (of slices: the Dice of the volume);
* the published losses on our own loop: SEA, SegPGD, CosPGD, each with the same aim for choosing its strongest image;
* from adv-lib: DAG, PDGD, PDPGD, ALMA-prox. They look for the smallest perturbation and have no radius: what they
  return is projected, and scaled to the radius, and the worse of both counts.

They see the images through :class:`monai_adv.attacks.foreign.Foreign`, on a [0, 1] so wide that their clamps, which
would destroy z-scored scans, touch no image within the radius.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from segmentation_targets import HIPPOCAMPUS, Problem, attacked, problems
from torch import Tensor

from monai_adv.attacks.base import Loss
from monai_adv.attacks.cospgd import CosPGD
from monai_adv.attacks.foreign import Foreign
from monai_adv.attacks.losses import balanced_hinge
from monai_adv.attacks.sea import SEA
from monai_adv.attacks.segmentation_ensemble import stages
from monai_adv.attacks.segpgd import SegPGD
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.evaluation.run.workers import machine
from monai_adv.statistics import Passes
from monai_adv.threats import Threat

Run = Callable[[Problem, Callable[[Tensor], None]], Tensor]
"""Attack a problem, tell the worst images after each stage, return the last ones."""

RADII: dict[str, list[Threat]] = {
    "nnunet_clean": [Threat("l2", 0.05, unit="rms"), Threat("linf", 0.04)],
    "nnunet_robust": [Threat("l2", 0.1, unit="rms"), Threat("linf", 0.1)],
    "model_clean": [Threat("l2", 0.05, unit="rms"), Threat("linf", 0.04)],
    "model": [Threat("l2", 0.1, unit="rms"), Threat("linf", 0.1)],
    "busi_plain": [Threat("l2", 0.005, unit="rms"), Threat("linf", 1 / 255)],
    "busi_robust": [Threat("l2", 0.015, unit="rms"), Threat("linf", 4 / 255)],
}


def strong_pgd(threat: Threat, steps: int, starts: int, sharpness: float, loss: Loss | None = None) -> list[SharpDice]:
    """The clean image first, then random starts."""
    one = partial(SharpDice, threat, steps, loss=loss, sharpness=(1.0, sharpness))
    return [one(), *(one(start="ball") for _ in range(starts - 1))]


def attacks(threat: Threat, steps: int, starts: int) -> dict[str, Run]:
    """Name -> function of the problem that returns its images; ours is first."""

    def run(some: Any) -> Run:
        return lambda problem, tell: attacked(problem, some, threat, tell=tell)

    table = {
        "ours, standard": run([stage.attack for stage in stages(threat, "standard")]),
        f"PGD {steps} x {starts}, soft Dice": run(strong_pgd(threat, steps, starts, 1.0)),
        f"PGD {steps} x {starts}, sharp Dice": run(strong_pgd(threat, steps, starts, 8.0)),
        f"PGD {steps} x {starts}, hinge": run(strong_pgd(threat, steps, starts, 1.0, balanced_hinge)),
        "SEA, 3 x 300": run([stage.attack for stage in SEA(threat).stages()]),
        "SegPGD-100": run([SegPGD(threat, 100)]),
        "CosPGD-100": run([CosPGD(threat, 100)]),
    }
    if find_spec("adv_lib") is None:
        print("adv-lib is not installed: its attacks are left out")
        return table
    peers: dict[str, tuple[str, dict[str, Any]]]
    if threat.norm == "l2":
        peers = {
            "DAG-200 (adv-lib)": ("dag", {"p": 2, "γ": 0.5}),
            "PDGD-500 (adv-lib)": ("pdgd", {"primal_lr": 0.1}),
            "PDPGD-500 (adv-lib)": ("pdpgd", {"norm": 2, "primal_lr": 0.1}),
        }
    else:
        peers = {
            "DAG-200 (adv-lib)": ("dag", {"p": math.inf, "γ": 0.5 / 255}),
            "PDPGD-500 (adv-lib)": ("pdpgd", {"norm": math.inf, "primal_lr": 0.1}),
            "ALMA-prox-500 (adv-lib)": ("alma_prox", {"lr_init": 0.001}),
        }
    for name, (function, options) in peers.items():
        lengths = tuple(options.keys() & {"γ", "primal_lr", "lr_init"})
        attack = f"adv_lib:segmentation.{function}"
        most = Passes(forward=500, backward_input=500)
        table[name] = run([Foreign(threat, attack, options, most=most, oversteps="project", lengths=lengths)])
    return table


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: for each target and radius what ours leaves, and the strongest of the others."""
    lines = [
        "| target | radius | cases | clean | ours | strongest other | its mean | ours above it: mean | worst case |"
    ]
    lines += ["|---|---|---:|---:|---:|---|---:|---:|---:|"]
    for target, radius in dict.fromkeys((r["target"], r["radius"]) for r in rows):
        here = [r for r in rows if (r["target"], r["radius"]) == (target, radius)]
        ours = {r["case"]: r["dice"] for r in here if r["attack"].startswith("ours")}
        clean = {r["case"]: r["clean"] for r in here}
        means, gaps = {}, {}
        for name in dict.fromkeys(r["attack"] for r in here if not r["attack"].startswith("ours")):
            found = {r["case"]: r["dice"] for r in here if r["attack"] == name and r["case"] in ours}
            if found.keys() == ours.keys():
                means[name] = 100 * sum(found.values()) / len(found)
                gaps[name] = [100 * (ours[c] - found[c]) for c in found]
        if not ours or not means:
            continue
        best = min(means, key=lambda name: means[name])
        mean = 100 * sum(ours.values()) / len(ours)
        worst = max(max(g) for g in gaps.values())
        lines.append(
            f"| {target} | {radius} | {len(ours)} | {100 * sum(clean.values()) / len(clean):.1f} | {mean:.2f} | "
            f"{best} | {means[best]:.2f} | {mean - means[best]:+.2f} | {worst:+.2f} |"
        )
    return "\n".join(lines)


def todo(arguments: argparse.Namespace) -> Iterator[tuple[str, Threat, Problem]]:
    """Target, radius, cases: the first case of every target, then the second, so that a stopped run has seen all."""
    each = {
        t: iter(problems(t, arguments.data, arguments.weights, arguments.cases, arguments.part))
        for t in arguments.targets
    }
    while each:
        for target in list(each):
            if (problem := next(each[target], None)) is None:
                del each[target]
                continue
            for norm in arguments.norms:
                yield from ((target, threat, problem) for threat in RADII[target] if threat.norm == norm)


def main() -> None:
    """Measure and write after every attack, so that an interrupted run keeps what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(), help="folder of the BUSI networks")
    parser.add_argument("--targets", nargs="+", default=[*HIPPOCAMPUS, "busi_plain", "busi_robust"], choices=RADII)
    parser.add_argument("--norms", nargs="+", default=["linf", "l2"], choices=["l2", "linf"])
    parser.add_argument("--cases", type=int, default=8)
    parser.add_argument("--part", action="store_true", help="of each patient a block or some slices: for slow machines")
    parser.add_argument("--steps", type=int, default=400, help="of plain PGD")
    parser.add_argument("--starts", type=int, default=5, help="of plain PGD")
    parser.add_argument("--only", nargs="*", help="attacks whose name contains one of these words")
    parser.add_argument("--output", type=Path, required=True, help="JSON, a row per attack and case")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(arguments.output.read_text()) if arguments.output.exists() else []
    for target, threat, problem in todo(arguments):
        clean = problem.scores(problem.images)
        for name, attack in attacks(threat, arguments.steps, arguments.starts).items():
            key = {"target": target, "radius": threat.describe(), "attack": name}
            done = {r["case"] for r in rows if key.items() <= r.items()}
            if clean.keys() <= done or (arguments.only and not any(word in name for word in arguments.only)):
                continue
            begin = time.perf_counter()
            after: list[dict[str, float]] = []
            try:
                dice = problem.scores(attack(problem, lambda worst: after.append(problem.scores(worst))))  # noqa: B023
            except (IndexError, RuntimeError) as error:
                print(f"{target} {threat.describe()} {problem.name} {name}: {error!r}", flush=True)
                continue
            seconds = time.perf_counter() - begin
            rows += [
                {
                    **key,
                    "case": c,
                    "clean": clean[c],
                    "dice": v,
                    "after": [a[c] for a in after],
                    "seconds": seconds,
                    "seed": 0,
                    "date": date.today().isoformat(),
                    "machine": machine(),
                }
                for c, v in dice.items()
            ]
            arguments.output.write_text(json.dumps(rows, indent=1))
            mean = sum(dice.values()) / len(dice)
            print(
                f"{target} {threat.describe()} {problem.name} {name}: {100 * mean:.2f} in {seconds:.0f} s", flush=True
            )
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
