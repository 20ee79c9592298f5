"""Sharp Dice: the soft Dice, made ever harder during the run, so that it ends as the score that counts.

The score is the hard Dice, of decisions; its gradient is 0. The soft Dice of ``softmax(logits)`` has one, but its
optimum is another image: it goes on pushing voxels that are lost already. The soft Dice of ``softmax(T * logits)``
tends to the hard one as the temperature 1 / T falls. Raised with T growing geometrically, by steps along the gradient
with momentum (Dong et al., "Boosting adversarial attacks with momentum", CVPR 2018, equations 6 and 7), it ends lower
wherever it was tried: from the clean image, and even more from the worst image that other attacks found. Own work,
measured in benchmarks/segmentation_strength.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from monai_adv.attacks.base import sample_loss
from monai_adv.attacks.pgd import PGD
from monai_adv.errors import InputError
from monai_adv.tasks import SegmentationTask
from monai_adv.tasks.base import Output, Target, Task


@dataclass(frozen=True)
class SharpDice(PGD):
    """PGD with momentum on the task's loss of ``sharpness * logits``; fields as in :class:`PGD`, other defaults.

    The strongest iterate by the task's own score is returned, and a sample that can score no lower leaves the batch.

    Args:
        sharpness: T at the first and at the last step; it grows by the same factor in each.
        missing: share of the steps in which a sample that lacks a class is first led to the voxel that comes nearest to
            it, see :func:`monai_adv.tasks.dice_score.nearest`. 0 for none.
        from_worst: an ensemble lets it start from the worst image so far.

    Example:
        >>> from monai_adv.threats import Threat
        >>> attack = SharpDice(Threat("l2", 0.3), steps=4, sharpness=(1.0, 16.0))
        >>> [attack.sharpness_at(k / 4) for k in range(5)]
        [1.0, 2.0, 4.0, 8.0, 16.0]
    """

    steps: int = 100
    relative_step: float | None = 0.2
    momentum: float = 0.9
    decay: bool = True
    sharpness: tuple[float, float] = (1.0, 6.0)
    missing: float = 0.3
    from_worst: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(math.isfinite(t) and t > 0 for t in self.sharpness):
            raise InputError.of("sharpness", self.sharpness, "two finite numbers > 0")
        if not 0 <= self.missing <= 1:
            raise InputError.of("missing", self.missing, "a share of the steps, 0 to 1")

    def sharpness_at(self, progress: float) -> float:
        """T when this share of the steps has been made."""
        first, last = self.sharpness
        return first * math.pow(last / first, progress)

    def _raised(self, task: Task, output: Output, target: Target, progress: float) -> Tensor:
        sharpness = self.sharpness_at(progress)
        sharp: Output = sharpness * output if isinstance(output, Tensor) else [sharpness * o for o in output]
        loss = sample_loss(task, self.loss, sharp, target, progress)
        if progress < self.missing and isinstance(task, SegmentationTask):
            loss = loss + task.missing_class(output, target)
        return loss
