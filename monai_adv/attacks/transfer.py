"""Transfer: images that fool a surrogate, shown to the network under test, whose gradient is never asked for.

Source: Papernot et al., "Practical black-box attacks against machine learning", AsiaCCS 2017. Beating the white-box
attacks this way is a sign of gradient masking (Athalye, Carlini, Wagner, ICML 2018, section 3.1).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from torch import nn

from monai_adv.attacks.base import Attack, AttackResult, BaseAttack, Problem, judged
from monai_adv.network_state import Mode
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Task
from monai_adv.threats import Threat


@dataclass(frozen=True)
class Transfer(BaseAttack[AttackResult]):
    """Attack a surrogate, and judge what comes out on the network.

    An attack that goes on after the surrogate is wrong (``until="lowest"``, a confident :class:`CW`)
    transfers better than one that stops at its boundary.

    Args:
        surrogate: a model of the same task, on the device of the images.
        attack: runs on the surrogate; its threat is the threat of this attack.
        task: how the surrogate's output is judged; ``None``: as that of the network.
        mode: mode of the network while it judges, restored afterwards. The surrogate's is a setting of ``attack``.

    Example:
        With the network itself as its surrogate it is the attack itself:

        >>> import torch
        >>> from monai_adv.attacks import PGD
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, attack = nn.Linear(4, 3), PGD(Threat("l2", 0.5, unit="norm"))
        >>> arguments = network, torch.ones(2, 4), torch.tensor([0, 1]), ClassificationTask()
        >>> torch.equal(Transfer(network, attack)(*arguments).images, attack(*arguments).images)
        True
    """

    threat: Threat = field(init=False, repr=False)
    surrogate: nn.Module
    attack: Attack
    task: Task | None = None
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        object.__setattr__(self, "threat", self.attack.threat)

    def run(self, problem: Problem) -> AttackResult:
        """What the surrogate's images do.

        Returns:
            ``wrong``, ``margin`` and ``broken`` are of the network; ``dead`` is false, because a surrogate without a
            gradient says nothing about it; ``passes`` are those of the surrogate, and one forward.
        """
        target, task = problem.target, problem.task
        found = self.attack(
            self.surrogate, problem.images, target, self.task or task,
            radius=problem.radius, generator=problem.generator,
        )  # fmt: skip
        result, _ = judged(problem.network, found.images, target, task, mode=self.mode)
        return replace(result, passes=found.passes + result.passes)

    def most_passes(self) -> Passes:
        """Those of the attack (on the surrogate), and a forward of the network."""
        return self.attack.most_passes() + Passes(forward=1)
