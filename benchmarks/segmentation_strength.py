"""Which schedule of sharp Dice is the strongest? Sequences of attacks, the score after each.

    python benchmarks/segmentation_strength.py --data .../data --weights .../busi --targets model --cases 1

Every line is a way to spend the 300 gradient steps of ``standard``, told by its name. Printed are the scores
in percent after each attack; the last one counts. Targets, radii and data as in benchmarks/segmentation_attacks.py.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from segmentation_attacks import RADII
from segmentation_targets import HIPPOCAMPUS, Problem, attacked, problems
from torch import Tensor

from monai_adv.attacks.base import Attack
from monai_adv.attacks.segmentation_ensemble import relay, stages
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.threats import Threat


def variants(threat: Threat) -> dict[str, list[Attack]]:
    """Name -> attacks; without random search, which is the same for all."""
    sharp = partial(SharpDice, threat)
    polish = partial(SharpDice, threat, from_worst=True)
    fine = polish(50, 0.08, sharpness=(3.0, 8.0))
    long = partial(sharp, 160, sharpness=(1.0, 8.0))
    first, falling = (stage.attack for stage in stages(threat, "standard")[:2])
    opening = [first, falling]
    return {
        "standard: clean 100, T 1-6, 2 polishes": [*opening, sharp(100), fine, fine],
        "worst 100, T 1-8, 2 polishes": [*opening, polish(100, sharpness=(1.0, 8.0)), fine, fine],
        "4 polishes, T 2-8, step 0.15": [*opening, *[polish(50, 0.15, sharpness=(2.0, 8.0))] * 4],
        "4 polishes, T 3-12": [*opening, *[polish(50, 0.08, sharpness=(3.0, 12.0))] * 4],
        "T 1 throughout": [
            *opening, sharp(100, sharpness=(1.0, 1.0)), *[polish(50, 0.08, sharpness=(1.0, 1.0))] * 2
        ],
        "without momentum": [
            *opening, sharp(100, momentum=0.0), *[polish(50, 0.08, sharpness=(3.0, 8.0), momentum=0.0)] * 2
        ],
        "the first polish coarse": [
            *opening, sharp(100, sharpness=(1.0, 8.0)), polish(50, 0.2, sharpness=(2.0, 8.0)), fine
        ],
        "step 0.4": [*opening, sharp(100, 0.4, sharpness=(1.0, 8.0)), fine, fine],
        "no falling radius": [first, long(), fine, fine],
        "no falling radius, step 0.4": [first, long(0.4), fine, fine],
        "no falling radius, two starts": [
            first, *[sharp(80, sharpness=(1.0, 8.0), start=start) for start in ("clean", "ball")], fine, fine
        ],
        "no falling radius, one polish": [first, sharp(210, sharpness=(1.0, 8.0)), fine],
        "half the relay, one polish": [relay(threat, 10, 10), sharp(230, sharpness=(1.0, 8.0)), fine],
        "no relay": [sharp(200, sharpness=(1.0, 8.0)), fine, fine],
    }  # fmt: skip


def compare(problem: Problem, threat: Threat) -> None:
    """Print a line per variant; what two begin with is made once."""

    def score(images: Tensor) -> float:
        values = problem.scores(images).values()
        return 100 * sum(values) / len(values)

    print(f"{problem.name} {threat.describe()}: clean {score(problem.images):.2f}")
    known: dict[str, Tensor] = {}
    for name, sequence in variants(threat).items():
        worst, found, made = None, [], ""
        for number, attack in enumerate(sequence):
            made += repr(attack)
            if made not in known:
                known[made] = attacked(problem, [attack], threat, worst, seed=number)
            worst = known[made]
            found.append(score(worst))
        print(f"  {name:40s}" + " ".join(f"{v:6.2f}" for v in found), flush=True)


def main() -> None:
    """All targets and radii that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(), help="folder of the BUSI networks")
    parser.add_argument("--targets", nargs="+", default=[*HIPPOCAMPUS, "busi_plain", "busi_robust"], choices=RADII)
    parser.add_argument("--norms", nargs="+", default=["l2", "linf"], choices=["l2", "linf"])
    parser.add_argument("--cases", type=int, default=1)
    parser.add_argument("--part", action="store_true", help="of each patient a block or some slices: for slow machines")
    arguments = parser.parse_args()
    for target in arguments.targets:
        for problem in problems(target, arguments.data, arguments.weights, arguments.cases, arguments.part):
            for threat in RADII[target]:
                if threat.norm in arguments.norms:
                    print(target, end=" ")
                    compare(problem, threat)


if __name__ == "__main__":
    main()
