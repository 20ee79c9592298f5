"""``python -m nnunet_trainers.demo FOLDER``; ``monai-adv demo`` starts it with what must be set before Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from monai_adv.errors import InputError
from nnunet_trainers.demo.workplace import Workplace

STAGES = 7


def main(argv: Sequence[str]) -> int:
    """Run the demo. Returns 0, 1 for a stage that failed, 2 for a folder that cannot be used, 130 after Ctrl-C."""
    try:
        place = Workplace(argv[0])
    except InputError as error:
        print(f"monai-adv: {error}", file=sys.stderr)
        return 2
    environment = place.environment(os.environ)
    os.environ.clear()
    os.environ.update(environment)
    print(f"Demo in {place.folder}: some minutes on two cores. What nnU-Net says goes to {place.log.name}.", flush=True)
    try:
        return _run(place)
    except KeyboardInterrupt:
        print("\nStopped; the next run goes on after the last finished stage.", file=sys.stderr)
        return 130


def _run(place: Workplace) -> int:
    # Only now: nnU-Net reads its folders when it is imported.
    from nnunet_trainers.demo.pipeline import basis, run_demo
    from nnunet_trainers.demo.progress import StageFailed, Stages
    from nnunet_trainers.demo.recipe import Recipe
    from nnunet_trainers.demo.summary import text_table

    recipe = Recipe()
    stages = Stages(place, STAGES, basis(recipe))
    try:
        results = run_demo(place, stages, recipe)
    except (InputError, StageFailed) as error:
        print(f"{stages.log_tail()}\n(above: the end of {place.log})\n", file=sys.stderr)
        print(f"monai-adv: the demo stopped: {error}", file=sys.stderr)
        return 1
    print(f"\n{text_table(results)}\n\nThe page: {place.folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
