"""Attacks of other libraries, or of one's own, as stages of an evaluation: :class:`Foreign`.

Known by name are those of torchattacks (Kim, 2020), foolbox (Rauber et al., JOSS 2020) and adv-lib (Rony & Ben Ayed);
any function ``(model, inputs, labels, eps) -> images`` joins in the same way.
"""

from __future__ import annotations

import inspect
import math
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from monai_adv.attacks import budget
from monai_adv.attacks.base import AttackResult, BaseAttack, Problem, Strongest, Until, one_of
from monai_adv.errors import AttackError, InputError, did_you_mean
from monai_adv.network_state import device_of, frozen
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask
from monai_adv.tasks.base import Output, Target, Task, first_resolution, take
from monai_adv.threats import Threat, per_sample

ForeignFunction = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""``(model, inputs, labels, eps)`` -> attacked images, like the inputs. Inputs and eps are in the same unit."""
Oversteps = Literal["refuse", "project"]
LIBRARIES = {"torchattacks": "torchattacks", "foolbox": "foolbox", "adv_lib": "adv-lib"}
"""Module -> what to install."""


@dataclass(frozen=True)
class Foreign(BaseAttack[AttackResult]):
    """An attack of another library. What it returns is checked, never corrected in silence.

    It sees a network of images in [0, 1]: with a box the box is mapped on it; without one a range so wide that a clamp
    to [0, 1] touches no image within the radius. Labels are class indices ``(B,)``, or label maps ``(B, *spatial)``;
    voxels that are ignored have the label that the network gives them. It does its random draws from the evaluation's
    seed, and the network is left as it was. The worse of the clean image and what it found is kept, sample by sample.

    Args:
        threat: norm, radius, box, channels.
        attack: ``"torchattacks:PGD"``, ``"foolbox:LinfPGD"``, ``"adv_lib:alma_prox"`` (of ``adv_lib.attacks``, or
            ``"adv_lib:segmentation.dag"``), or a function, see :data:`ForeignFunction`.
        options: of that attack, by name; the radius is not one of them.
        most: passes of one sample at most, for predicting what an evaluation costs.
        oversteps: ``"refuse"``: images outside the radius end the evaluation. ``"project"``: for attacks that have no
            radius but look for the smallest perturbation: it is brought to the radius by projection and by scaling,
            and the worse of both is kept.
        lengths: options that are lengths in images that fill [0, 1], such as a step size. Without a box images fill a
            small part of it, and these are multiplied by that.
        unit_range: False: no mapping; the attack sees the images and the radius as they are.
        family: what the attack knows of the network: white-box, black-box, transfer, random.
        until: when a sample counts as finished.

    Raises:
        InputError: settings that cannot be used.

    Example:
        A step along the sign of the gradient, written by hand; a linear network's loss cannot be raised further:

        >>> def fgsm(model, inputs, labels, eps):
        ...     x = inputs.clone().requires_grad_()
        ...     loss = torch.nn.functional.cross_entropy(model(x), labels, reduction="sum")
        ...     return (inputs + eps * torch.autograd.grad(loss, x)[0].sign()).detach()
        >>> network, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(3, 1, 2, 2)
        >>> attack = Foreign(Threat("linf", 0.1, box=(-1, 2)), fgsm, most=Passes(1, 1))
        >>> result = attack(network, images, torch.tensor([0, 1, 0]), ClassificationTask(), generator=torch.Generator())
        >>> (result.images - images).abs().amax((1, 2, 3)).round(decimals=4)
        tensor([0.1000, 0.1000, 0.1000])
        >>> result.passes
        Passes(forward=9, backward_input=3, backward_full=0)
    """

    attack: str | ForeignFunction
    options: Mapping[str, Any] = field(default_factory=dict)
    most: Passes = field(kw_only=True)
    oversteps: Oversteps = "refuse"
    lengths: tuple[str, ...] = ()
    unit_range: bool = True
    family: str = "white-box"
    until: Until = "lowest"

    def __post_init__(self) -> None:
        one_of("oversteps", self.oversteps, get_args(Oversteps))
        one_of("until", self.until, get_args(Until))
        if isinstance(self.attack, str):
            library, _, name = self.attack.partition(":")
            if library not in LIBRARIES or not name:
                allowed = f"a function, or LIBRARY:ATTACK with {', '.join(LIBRARIES)}"
                raise InputError.of("attack", self.attack, allowed)
        elif not callable(self.attack):
            raise InputError.of("attack", self.attack, "a function (model, inputs, labels, eps) -> images")
        elif self.options:
            raise InputError.of("options", dict(self.options), "given for an attack that is named only")
        if unknown := set(self.lengths) - set(self.options):
            raise InputError.of("lengths", sorted(unknown), f"names of options, here {sorted(self.options)}")
        if not isinstance(self.most, Passes):
            raise InputError.of("most", self.most, "Passes(forward, backward_input)")

    @property
    def name(self) -> str:
        """In messages."""
        return self.attack if isinstance(self.attack, str) else getattr(self.attack, "__name__", "function")

    @property
    def random(self) -> bool:
        """Nobody knows what it draws."""
        return True

    def run(self, problem: Problem) -> AttackResult:
        """Call the attack, check what it returns, and judge it.

        Raises:
            AttackError: the library is not installed or has no such attack; images of another shape or dtype, NaN, or
                a perturbation beyond the radius, which is named.
        """
        images, radius, target, task = problem.images, problem.radius, problem.target, problem.task
        run = self._found(task)
        delta, passes = torch.zeros_like(images), Passes(forward=len(images))
        best = Strongest(images, task, self.until)
        with frozen(problem.network) as model, torch.enable_grad():
            with torch.no_grad():
                clean = model(images)
            labels = _labels(task, clean, target)
            head = ClassificationTask.logits if labels.ndim == 1 else first_resolution
            best.update(torch.arange(len(images), device=images.device), images, clean, target)
            # They have one radius: images whose radii differ by a thousandth at most share the smallest one.
            groups = (radius.log() * 1000).round()
            for group in torch.unique(groups[radius > 0]):
                index = (groups == group).nonzero()[:, 0]
                some, own = images[index], radius[index]
                seen = _Seen(model, head, self.threat, some, float(own.min()), self._range(some, own))
                delta[index] = self._perturbation(run, seen, some, labels[index], own, problem.generator)
                passes += seen.passes
                with torch.no_grad():
                    for attacked in self._brought_to(some, delta[index], own):
                        best.update(index, attacked, model(attacked), take(target, index))
                        passes.forward += len(index)
        dead = delta.flatten(1).eq(0).all(1) & (radius > 0)
        return AttackResult(best.images, best.wrong, best.margin, dead, best.broken, passes)

    def most_passes(self) -> Passes:
        """As the setting says, and what it takes to judge what was found."""
        return self.most + Passes(forward=2 if self.oversteps == "refuse" else 3)

    def _perturbation(
        self,
        run: ForeignFunction,
        seen: _Seen,
        images: Tensor,
        labels: Tensor,
        radius: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """What the attack adds, in the unit of the images."""
        inputs = seen.inwards(images)
        given = inputs.clone()
        with _seeded(generator, device_of(seen.network)):
            found = run(seen, given, labels, seen.eps)
        if faults := budget.same_layout(found, inputs):
            raise AttackError(f"attack {self.name}: {'; '.join(faults)}.")
        found = found.detach()
        if not bool(found.isfinite().all()):
            raise AttackError(f"attack {self.name}: it returned NaN or infinity, allowed is finite images.")
        delta = (found - inputs) * seen.width
        if self.oversteps == "refuse":
            _, faults = budget.used(self.threat, images, images + delta, radius)
            if faults:
                todo = "oversteps='project' brings what an attack without a radius finds back to what is allowed"
                raise AttackError(f"attack {self.name}: {'; '.join(faults)}; {todo}.")
        return delta

    def _brought_to(self, images: Tensor, delta: Tensor, radius: Tensor) -> Iterator[Tensor]:
        """The candidates."""
        if self.oversteps == "refuse":
            yield images + delta
            return
        size = per_sample(self.threat.size(delta), delta)
        full = delta * torch.where(size > 0, per_sample(radius, delta) / size, torch.zeros_like(size))
        for each in (delta, full):
            yield images + self.threat.project(each, images, radius)

    def _range(self, images: Tensor, radius: Tensor) -> tuple[float, float]:
        """What the attack sees as 0 and 1."""
        if not self.unit_range:
            return 0.0, 1.0
        if self._boxed():
            assert self.threat.box is not None
            return self.threat.box
        low, high = (float(v) for v in images.aminmax())
        room = 1.01 * float(radius.max()) + 1e-3 * max(high - low, 1.0)
        return low - room, high + room

    def _boxed(self) -> bool:
        return self.threat.box is not None and self.threat.boxed is None and self.threat.beyond == "refuse"

    def _found(self, task: Task) -> ForeignFunction:
        """The function behind the name."""
        if not isinstance(self.attack, str):
            return self.attack
        library, _, name = self.attack.partition(":")
        try:
            module: Any = import_module(library)
        except ImportError as error:
            raise AttackError.of(
                "attack", self.attack, f"one of an installed library ({error})",
                f"run `pip install {LIBRARIES[library]}`",
            ) from error  # fmt: skip
        if library == "foolbox" and not isinstance(task, ClassificationTask):
            raise AttackError.of(
                "attack", self.attack, "an attack on segmentations", "foolbox has attacks on classifiers"
            )
        place: Any = module if library == "torchattacks" else import_module(f"{library}.attacks")
        if library == "adv_lib" and name.startswith("segmentation."):
            place = import_module("adv_lib.attacks.segmentation")
        found = getattr(place, own := name.rpartition(".")[2], None)
        if not callable(found):
            known = [n for n in dir(place) if not n.startswith("_") and callable(getattr(place, n))]
            raise AttackError.of("attack", self.attack, f"an attack of {library}", did_you_mean(own, known))
        callers: dict[str, Callable[..., Tensor]] = {
            "torchattacks": _torchattacks, "foolbox": _foolbox, "adv_lib": _adv_lib
        }  # fmt: skip

        def run(model: Any, inputs: Tensor, labels: Tensor, eps: float) -> Tensor:
            low, high = (0.0, 1.0) if self._boxed() or not self.unit_range else map(float, inputs.aminmax())
            options = {k: v * (high - low) if k in self.lengths else v for k, v in self.options.items()}
            try:
                return callers[library](found, options, model, inputs, labels, eps)
            except TypeError as error:
                raise AttackError.of(
                    "options", dict(self.options), f"options of {self.attack}", f"it says: {error}"
                ) from error

        return run


class _Seen(nn.Module):
    """The network as a foreign attack sees it; counts passes.

    Attributes:
        eps: the radius in its unit, smaller by what the conversion may round.
        width: of its range, in units of images.
    """

    def __init__(
        self,
        network: nn.Module,
        head: Callable[[Output], Tensor],
        threat: Threat,
        images: Tensor,
        radius: float,
        ends: tuple[float, float],
    ) -> None:
        super().__init__()
        self.network, self.head, self.low, self.width = network, head, ends[0], ends[1] - ends[0]
        self.passes = Passes()
        entries = math.sqrt(images[0].numel()) if threat.norm == "l2" else 1.0
        rounding = torch.finfo(images.dtype).eps * entries * (1 + float(images.abs().max()) / self.width)
        self.eps = max(radius / self.width - rounding, 0.0)
        self.eval()

    def inwards(self, images: Tensor) -> Tensor:
        """Images in the attack's range."""
        return (images - self.low) / self.width

    def forward(self, x: Tensor) -> Tensor:
        """Logits of inputs in the attack's range."""
        logits = self.head(self.network(x * self.width + self.low))
        self.passes.forward += len(x)
        if x.requires_grad and not logits.requires_grad:  # no path to the images: their gradient is 0, not an error
            logits = logits + 0 * per_sample(x.flatten(1).sum(1), logits)
        if logits.requires_grad:
            logits.register_hook(self._count)  # type: ignore[no-untyped-call]
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.passes.backward_input += len(gradient)


def _labels(task: Task, output: Output, target: Target) -> Tensor:
    """Class indices, or label maps without ignored voxels."""
    points = task.points(output, target)
    if points.labels.shape[1] == 1:
        return points.labels[:, 0]
    logits = first_resolution(output)
    if points.logits.shape[1:] != logits.flatten(2).shape[1:]:
        found = "a segmentation of overlapping regions"
        raise AttackError.of("attack", found, "classes that exclude each other, where the attack is a foreign one")
    labels = torch.where(points.valid, points.labels, points.logits.argmax(1))
    return labels.view(len(logits), *logits.shape[2:])


def _torchattacks(
    kind: Any, options: dict[str, Any], model: nn.Module, inputs: Tensor, labels: Tensor, eps: float
) -> Any:
    if "eps" in inspect.signature(kind).parameters:
        options = {"eps": eps, **options}
    return kind(model, **options)(inputs, labels)


def _foolbox(kind: Any, options: dict[str, Any], model: nn.Module, inputs: Tensor, labels: Tensor, eps: float) -> Any:
    foolbox: Any = import_module("foolbox")
    whole = foolbox.PyTorchModel(model, bounds=(0, 1), device=inputs.device)
    _, clipped, _ = kind(**options)(whole, inputs, labels, epsilons=eps)
    return clipped


def _adv_lib(
    function: Any, options: dict[str, Any], model: nn.Module, inputs: Tensor, labels: Tensor, eps: float
) -> Any:
    known = inspect.signature(function).parameters
    for name in ("eps", "ε"):
        if name in known:
            options = {name: eps, **options}
    if "masks" in known and "masks" not in options:
        # They want 99 % of the voxels wrong: of all voxels that is out of reach within a small radius, of the
        # foreground it is what the Dice asks for. Images without foreground: all voxels.
        wanted = labels > 0
        options["masks"] = wanted | ~wanted.flatten(1).any(1).view(-1, *[1] * (labels.ndim - 1))
    return function(model, inputs, labels, **options)


@contextmanager
def _seeded(generator: torch.Generator | None, device: torch.device) -> Iterator[None]:
    """Global random streams that follow from the generator, and are afterwards as they were."""
    assert generator is not None
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    states = random.getstate(), np.random.get_state()  # noqa: NPY002 - theirs
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
