"""Which schedule of sharp Dice is the strongest? Sequences of attacks from a common opening, the score after each.

    python benchmarks/segmentation_strength.py --data .../data --weights .../busi --targets nnunet_ima model --cases 1

Every line is a variant of the 200 gradient steps that follow the opening of ``standard`` (100 steps): a search with the
step, sharpness and start that its name tells, then polishes. Printed are the scores in percent after each attack; the
last one counts. Targets, radii and data as in benchmarks/segmentation_attacks.py.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from segmentation_attacks import RADII
from segmentation_targets import HIPPOCAMPUS, Problem, attacked, problems

from monai_adv.attacks.base import Attack
from monai_adv.attacks.segmentation_ensemble import stages
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.threats import Threat


def variants(threat: Threat) -> dict[str, list[Attack]]:
    """Name -> attacks after the opening."""
    sharp = partial(SharpDice, threat)
    polish = partial(SharpDice, threat, from_worst=True)
    fine = polish(50, 0.08, sharpness=(3.0, 8.0))
    return {
        "standard: clean 100, T 1-6, 2 polishes": [sharp(100), fine, fine],
        "worst 100, T 1-8, 2 polishes": [polish(100, sharpness=(1.0, 8.0)), fine, fine],
        "4 polishes, T 2-8, step 0.15": [polish(50, 0.15, sharpness=(2.0, 8.0))] * 4,
        "4 polishes, T 3-12": [polish(50, 0.08, sharpness=(3.0, 12.0))] * 4,
        "T 1 throughout": [sharp(100, sharpness=(1.0, 1.0)), *[polish(50, 0.08, sharpness=(1.0, 1.0))] * 2],
        "without momentum": [sharp(100, momentum=0.0), *[polish(50, 0.08, sharpness=(3.0, 8.0), momentum=0.0)] * 2],
    }


def compare(problem: Problem, threat: Threat) -> None:
    """Print a line per variant."""

    def score(images: object) -> float:
        values = problem.scores(images).values()  # type: ignore[arg-type]
        return 100 * sum(values) / len(values)

    opening = attacked(problem, [stage.attack for stage in stages(threat, "standard")[:2]], threat)
    print(f"{problem.name} {threat.describe()}: clean {score(problem.images):.2f}, opening {score(opening):.2f}")
    for name, sequence in variants(threat).items():
        worst, found = opening, []
        for attack in sequence:
            worst = attacked(problem, [attack], threat, worst)
            found.append(score(worst))
        print(f"  {name:45s}" + " ".join(f"{v:6.2f}" for v in found), flush=True)


def main() -> None:
    """All targets and radii that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=Path(), help="folder of the BUSI networks")
    parser.add_argument("--targets", nargs="+", default=[*HIPPOCAMPUS, "busi_plain", "busi_robust"], choices=RADII)
    parser.add_argument("--norms", nargs="+", default=["l2", "linf"], choices=["l2", "linf"])
    parser.add_argument("--cases", type=int, default=1)
    arguments = parser.parse_args()
    for target in arguments.targets:
        for problem in problems(target, arguments.data, arguments.weights, arguments.cases):
            for threat in RADII[target]:
                if threat.norm in arguments.norms:
                    print(target, end=" ")
                    compare(problem, threat)


if __name__ == "__main__":
    main()
