"""LBGAT: learnable boundary guided adversarial training.

Source: Cui et al., "Learnable boundary guided adversarial training", ICCV 2021. A teacher t learns the clean images;
the robust network f learns, on attacked images, the teacher's logits, and no labels at all:
``L(t(x), y) + mean (f(x') - t(x))^2 + beta * KL(p_f(x) || p_f(x'))``. Both are trained together, and the gradient of
the distance flows into the teacher as well, so that its boundary stays one that f can learn. f is what is deployed.

Segmentation: distance and divergence are means over voxels and resolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.defenses.trades import kl_attack
from monai_adv.errors import InputError
from monai_adv.network_state import bare, device_of, unwrap_ddp
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Points, TrainingTask
from monai_adv.tasks.divergence import divergence, kl_divergence

_CIFAR = {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.007 / 0.031, "box": (0.0, 1.0)}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "lbgat0_cifar": {**_CIFAR, "beta": 0.0},
    "lbgat6_cifar": {**_CIFAR, "beta": 6.0},
    "ima_covid": {"norm": "l2", "eps": 12.0, "unit": "norm", "box": (0.0, 1.0)},
}


@dataclass(frozen=True)
class LBGATSettings(AttackSettings):
    """Hyper-parameters of LBGAT."""

    beta: float = setting(6.0, "weight of the divergence", "a number >= 0 (0: LBGAT0)", not_negative)
    start: Literal["gaussian", "ball", "surface"] = setting(
        "gaussian", "first point of the attack; at the clean image the divergence has no gradient"
    )


class LBGAT(Defense):
    """The network learns, under attack, the logits of a teacher that learns the clean images beside it.

    Args:
        task: what is right.
        settings: see :class:`LBGATSettings`.
        channels: input channels that are intensities; ``None`` means all.
        teacher: a network with the same outputs; default: a copy of the network, made in :meth:`attach`.

    Example:
        A teacher that starts as a copy agrees with the network: without an attack only its own loss is left.

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> lbgat = LBGAT(ClassificationTask(), LBGATSettings(eps=0))
        >>> lbgat.attach(network)
        >>> bool(lbgat(network, images, target) == ClassificationTask().training_loss(network(images), target))
        True
    """

    settings_class = LBGATSettings
    settings: LBGATSettings

    def __init__(
        self,
        task: TrainingTask,
        settings: LBGATSettings | None = None,
        channels: tuple[int, ...] | None = None,
        *,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__(task, settings, channels)
        self.teacher = teacher
        self._attached = False

    def attach(self, network: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Make the teacher, and let the optimiser train it: its weights join the first parameter group.

        Without an optimiser the caller gives ``defense.teacher.parameters()`` to one. On several ranks the teacher is
        wrapped in DDP, so every rank must call this.
        """
        if self.teacher is None:
            self.teacher = copy.deepcopy(bare(network))
        device = device_of(network)
        self.teacher.to(device).train()
        self.teacher.zero_grad()
        if optimizer is not None:
            optimizer.param_groups[0]["params"].extend(p for p in self.teacher.parameters() if p.requires_grad)
        if dist.is_available() and dist.is_initialized():
            self.teacher = DistributedDataParallel(self.teacher, [device] if device.type == "cuda" else None)
        self._attached = True

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: both networks meet in the distance of their logits."""
        self.begin(batch)
        settings = self.settings
        teacher = self._ready_teacher()
        noisy = kl_attack(self, network, batch) if settings.eps > 0 else batch.images
        noisy_output = network(noisy)
        teacher_output = teacher(batch.images)
        self._check(teacher_output, noisy_output)
        guided = divergence(self.task, noisy_output, teacher_output, batch.target, _squared_distance).mean()
        self.statistics.add("teacher_distance", guided.detach()[None])
        teacher_loss = self.task.training_loss(teacher_output, batch.target)
        self.statistics.add("teacher_right", self.task.correct(teacher_output, batch.target).float())
        loss = teacher_loss + guided
        output = None
        if settings.eps == 0:  # the divergence is 0 then
            output = noisy_output
        elif settings.beta > 0:
            output = unwrap_ddp(network)(batch.images)
            loss = loss + settings.beta * kl_divergence(self.task, output, noisy_output, batch.target).mean()
        passes = 2 if output is noisy_output or output is None else 3  # the teacher's count as the network's
        yield self.part(batch, loss, output, noisy_output, forward=passes, full=passes)

    def state_dict(self) -> dict[str, Any]:
        """As every defence, and the teacher's weights and buffers."""
        weights = unwrap_ddp(self._ready_teacher()).state_dict()
        return {**super().state_dict(), "teacher": {k: v.detach().to("cpu", copy=True) for k, v in weights.items()}}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit; :meth:`attach` first.

        Raises:
            InputError: the checkpoint is that of another teacher; nothing is changed then.
        """
        teacher = unwrap_ddp(self._ready_teacher())
        own, given = ({k: tuple(v.shape) for k, v in s.items()} for s in (teacher.state_dict(), saved["teacher"]))
        if own != given:
            different = sorted(k for k in own.keys() | given.keys() if own.get(k) != given.get(k))
            raise InputError.of(
                "teacher", f"a checkpoint that differs in {', '.join(different[:3])}", "that of the same teacher",
                "give the teacher that the checkpoint was trained with",
            )  # fmt: skip
        super().load_state_dict(saved)
        teacher.load_state_dict(saved["teacher"])

    def _ready_teacher(self) -> nn.Module:
        if self.teacher is None or not self._attached:
            raise InputError("teacher: there is none yet; call attach(network, optimizer) once before training.")
        return self.teacher

    @staticmethod
    def _check(teacher: Output, network: Output) -> None:
        given, wanted = (
            [tuple(o.shape) for o in ([out] if isinstance(out, Tensor) else out)] for out in (teacher, network)
        )
        if given != wanted:
            raise InputError.of(
                "teacher", f"outputs {given}", f"outputs of the network's shape {wanted}",
                "give a teacher with the same classes",
            )  # fmt: skip


def _squared_distance(network: Points, teacher: Points) -> Tensor:
    """``(B, N)`` mean over the classes."""
    return (network.logits - teacher.logits).square().mean(1)


METHOD = Method(
    "LBGAT",
    LBGAT,
    family="ensembling",
    idea="attacked images, on the logits of a teacher that learns clean ones",
    paper="Cui et al., ICCV 2021",
    state="a teacher network",
    cost="2K + 10, the teacher as large as the network",
    most=lambda s: 2 * s.steps + (10 if s.beta else 7),
    presets=PRESETS,
)
