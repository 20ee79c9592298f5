"""Where nothing is attacked a training is a clean one.

Hosts refuse a start that makes it so, and say once, with the reason and what to do, that an epoch was one.
"""

from __future__ import annotations

from collections.abc import Mapping

from monai_adv.defenses.base import Defense
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.tasks import SegmentationTask

NEXT_TO_NOTHING = 0.1
"""Dice up to which a model has found next to nothing that an attack could take from it."""


def least_dice(defense: type[Defense], settings: DefenseSettings, threshold: float) -> float | None:
    """The Dice above which a model is worth attacking; None where nothing is attacked in training.

    Args:
        defense: that is to train it.
        settings: of that class.
        threshold: of the task, above which a sample is right.

    Example:
        >>> from monai_adv.defenses import method
        >>> for name in ("IMA", "SAT", "Standard"):
        ...     print(least_dice(method(name).defense, method(name).settings(), 0.6))
        0.6
        0.1
        None
    """
    if not defense.attacks or settings.eps == 0:
        return None
    return threshold if defense.attacks_right_only(settings) else min(threshold, NEXT_TO_NOTHING)


class NothingAttacked:
    """The warning of a training, at most once.

    Example:
        >>> from monai_adv.defenses.sat import SAT
        >>> from monai_adv.tasks import ClassificationTask
        >>> warning = NothingAttacked()
        >>> defense = SAT(ClassificationTask())
        >>> warning(defense, {"attacked": 0.5}) is None
        True
        >>> warning(defense, {"attacked": 0.0})[:47]
        'no sample was attacked in this epoch, so it was'
        >>> warning(defense, {"attacked": 0.0}) is None
        True
    """

    def __init__(self) -> None:
        self._said = False

    def __call__(self, defense: Defense, figures: Mapping[str, float]) -> str | None:
        """One sentence, or None.

        Args:
            defense: the one that trains.
            figures: what its ``on_epoch_end`` returned. Without ``attacked`` the method attacks nothing, or not yet.
        """
        if self._said or defense.settings.eps == 0 or figures.get("attacked") != 0:
            return None
        self._said = True
        name = type(defense).__name__
        return f"no sample was attacked in this epoch, so it was clean training: {_reason(defense, figures, name)}"


def _reason(defense: Defense, figures: Mapping[str, float], name: str) -> str:
    task = defense.task
    if defense.attacks_right_only(defense.settings):
        radius = figures.get("margin_mean", figures.get("radius_mean"))
        if radius == 0 and figures.get("clean_right"):
            return (
                f"the radius of every sample has fallen to 0, as {name} shrinks it where an attack succeeds; give a "
                "smaller eps, or look whether the network is right in eval mode as it is in training."
            )
        if not isinstance(task, SegmentationTask):
            return (
                f"{name} attacks samples that are right, and none was; train longer, start from trained weights, or "
                "look whether the labels fit the network's outputs."
            )
        return (
            f"{name} attacks samples that are right, and the Dice of none was above `threshold` "
            f"({task.settings.threshold:g}); a young network needs more epochs: if this goes on, start from trained "
            "weights or lower `threshold`."
        )
    if isinstance(task, SegmentationTask) and task.settings.empty_target == "skip":
        return (
            "no sample had any foreground, and those without are skipped (`empty_target`); look at the labels, or set "
            "`empty_target` to 'empty_prediction' to attack them as well."
        )
    return f"{name} found no sample that it may attack; look at the labels of the training data."
