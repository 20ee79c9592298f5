"""Probes: cheap experiments on the model itself, whose results :mod:`monai_adv.evaluation.checks.flags` judges.

Sources: Athalye et al., "Obfuscated gradients give a false sense of security", ICML 2018, section 3.1 (unbounded
attacks, gradients); Carlini et al., "On evaluating adversarial robustness", 2019, section 4 (more steps, the
checklist); Croce et al., "RobustBench", 2021, and the checks of AutoAttack (randomness, probabilities as outputs).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn

from monai_adv.attacks.apgd import APGD
from monai_adv.attacks.base import Attack, Until, continued, input_gradient
from monai_adv.attacks.cw import CW
from monai_adv.attacks.losses import balanced_hinge, cross_entropy, margin
from monai_adv.attacks.pgd import PGD
from monai_adv.attacks.relay import Relay
from monai_adv.attacks.sea import radius_reduction
from monai_adv.attacks.sharp_dice import SharpDice
from monai_adv.errors import InputError
from monai_adv.evaluation.checks.probed import CaseProbe, Consistency, ModelProbe, TrainedAgainst
from monai_adv.evaluation.models.protocol import Case, Model
from monai_adv.evaluation.models.radii import case_raw_unit, in_words
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.settings import Version
from monai_adv.metrics.score import Kind, Score, mean_known
from monai_adv.network_state import device_of, frozen, inputs_untouched
from monai_adv.random_streams import seed_of
from monai_adv.statistics import Passes
from monai_adv.tasks import ClassificationTask, Target, take, to_device
from monai_adv.tasks.base import are_probabilities, first_resolution
from monai_adv.tasks.segmentation import judged_alone
from monai_adv.threats import ROUNDING, Norm, Threat

T = TypeVar("T")
CASES = 3
IMAGES = 64
STEPS: dict[Version, int] = {"quick": 80, "standard": 300, "full": 600}
"""Of the longest attack: at least twice as many as any attack of the version makes from one start."""
UNBOUNDED_STEPS = 50
CONFIDENT = 50.0
"""Logits by which the long attack on a classifier wants it to be wrong."""
LADDER = (1.0, 4.0, 16.0, 0.25)
"""Unbounded radii, as multiples of the intensity range of the images."""


Once = Callable[[str, Callable[[], CaseProbe]], CaseProbe]
"""What is known of a case, or what the function finds of it: for those who keep it, so that a case is probed once."""


def probe(
    model: Model,
    levels: Sequence[Level],
    seed: int = 0,
    cases: Sequence[str] | None = None,
    steps: int = STEPS["standard"],
    once: Once = lambda case, find: find(),
    unbounded: int = UNBOUNDED_STEPS,
) -> ModelProbe:
    """Try a model on a few cases.

    Args:
        model: the model with its data.
        levels: of the evaluation.
        seed: of the random starts.
        cases: names of the cases; default: three, spread over the model's. Of a
            classification case at most 64 images are used.
        steps: of the long attack, see :data:`STEPS`.
        once: stands between a case and its probes.
        unbounded: steps of an attack without a bound.

    Returns:
        what was found over all probed cases.

    Raises:
        InputError: a case that cannot be read, or a unit that it cannot convert.
    """
    names = tuple(cases) if cases is not None else tuple(spread(model.cases, CASES))
    if not names:
        raise InputError("cases: the model has no case to probe.")
    found = [once(name, partial(_probe_case, model, name, levels, seed, steps, unbounded)) for name in names]
    first = found[0]
    together = ModelProbe(
        cases=names,
        steps=steps,
        unit=model.unit,
        images=sum(f.images for f in found),
        threats=first.threats,
        per_voxel=first.per_voxel,
        trained=first.trained,
        box=first.box,
        low=min(f.low for f in found),
        high=max(f.high for f in found),
        sd=sum(f.sd for f in found) / len(found),
        outside=_mean(found, [f.outside for f in found]),
        relative={key: min(f.relative[key] for f in found) for key in first.relative},
        probabilities=all(f.probabilities for f in found),
        repeat=max(f.repeat for f in found),
        batch=max(f.batch for f in found),
        training=max(f.training for f in found),
        seconds=sum(f.seconds for f in found),
    )
    samples, voxels = [f.zero_samples for f in found], [f.zero_voxels for f in found]
    left, longer = [f.unbounded for f in found], [f.longer for f in found]
    if not (_all_known(samples) and _all_known(voxels) and _all_known(left) and _all_known(longer)):
        return together
    return replace(
        together,
        zero_samples=_mean(found, samples),
        zero_voxels=_mean(found, voxels),
        unbounded={norm: mean_known([score for each in left for score in each[norm]]) for norm in left[0]},
        longer={level.key: {n: f[level.key] for n, f in zip(names, longer, strict=True)} for level in levels},
    )


def most_passes(kind: Kind, levels: Sequence[Level], version: Version, box: bool) -> Passes:
    """What one probed input costs, apart from single passes: for predicting what an evaluation costs.

    Example:
        Two losses at four radii without a bound for the norm, two long attacks for the level:

        >>> most_passes("classification", [Level("l2", 1.0)], "quick", box=False).backward_input
        560
    """
    steps = STEPS[version]
    unbounded = len({level.norm for level in levels}) * 2 * (1 if box else len(LADDER)) * UNBOUNDED_STEPS
    longer = sum(
        attack.most_passes().backward_input
        for level in levels
        for attack in long_attacks(kind, Threat(level.norm, 1.0, unit="norm"), steps)
    )
    return Passes(forward=unbounded + longer, backward_input=unbounded + longer)


def long_attacks(kind: Kind, threat: Threat, steps: int) -> list[Attack]:
    """Attacks that should find nothing that the plan has not found.

    Some are the plan's own from a new start for longer: were they stopped too early? The last is of a kind that no plan
    has, with a loss of its own: a plan is blind where its losses are, and so are longer runs of it.

    Example:
        >>> [type(attack).__name__ for attack in long_attacks("classification", Threat("l2", 1.0), 300)]
        ['APGD', 'CW']
    """
    if kind == "classification":
        return [APGD(threat, steps, until="wrong"), CW(threat, steps, kappa=CONFIDENT, start="ball")]
    return [
        SharpDice(threat, max(2 * steps // 3, 1), start="surface"),
        Relay(threat, radius_reduction(None, max(steps // 2, 3))),
        SharpDice(threat, max(steps // 3, 1), loss=balanced_hinge, sharpness=(1.0, 1.0), missing=0.0, from_worst=True),
    ]


def _probe_case(
    model: Model, name: str, levels: Sequence[Level], seed: int, steps: int, without_bound: int
) -> CaseProbe:
    case = model.load(name)
    with _untouched(case.network):
        return _probe_loaded(model, case, levels, seed, steps, without_bound)


def _probe_loaded(
    model: Model, case: Case, levels: Sequence[Level], seed: int, steps: int, without_bound: int
) -> CaseProbe:
    device = device_of(case.network)
    classification = model.kind == "classification"
    # A patient's score needs all slices; of independent images some will do.
    count = len(case.images)
    chosen = torch.tensor(spread(range(count), IMAGES) if classification else list(range(count)))
    images, target = case.images[chosen].to(device), to_device(take(case.target, chosen), device)
    threats = {level.key: case.threat(level) for level in levels}
    any_threat = next(iter(threats.values()), Threat("l2", 0.0, unit="norm"))
    raw_unit = case_raw_unit(case)
    values = images if any_threat.channels is None else images[:, list(any_threat.channels)]
    low, high = (float(v) for v in values.aminmax())
    found = CaseProbe(
        images=len(images),
        threats={key: threat.describe(images, raw_unit) for key, threat in threats.items()},
        per_voxel={key: threat.rms(images) for key, threat in threats.items()},
        trained=_trained(model, case, images),
        box=any_threat.box if any_threat.boxed is None else None,
        low=low,
        high=high,
        sd=float(values.double().std()),
        outside=_outside(values, any_threat),
        relative={key: _relative(threat, images, low, high) for key, threat in threats.items()},
        **vars(consistency(case, images)),
    )
    if found.outside:
        return found
    # 56 bits of it: the draws are those of the published figures.
    generator = torch.Generator(device).manual_seed(seed_of(seed, model.name, case.name) >> 7)
    gradients = _gradients(case, images, target, list(threats.values()), generator)
    until: Until = "wrong" if classification else "lowest"
    losses = (None, margin if classification else cross_entropy)
    unbounded: dict[Norm, list[float]] = {}
    for norm in dict.fromkeys(level.norm for level in levels):
        # A box that fixes voxels is no part of this: who may replace the whole image may replace those.
        box = any_threat.box if any_threat.beyond == "refuse" else None
        width = box[1] - box[0] if box is not None else max(high - low, 1e-6)
        ladder = [1.0] if box is not None else LADDER
        scale = math.sqrt(values[0].numel()) if norm == "l2" else 1.0
        wide = [Threat(norm, m * width * scale, box, "norm", any_threat.channels) for m in ladder]
        plain = [PGD(t, without_bound, start="ball", until=until, loss=loss) for t in wide for loss in losses]
        unbounded[norm] = [s.remaining for s in _left_by(plain, case, chosen, generator).values()]
    longer = {}
    for key, threat in threats.items():
        left = _left_by(long_attacks(model.kind, threat, steps), case, chosen, generator)
        longer[key] = {name: score.score for name, score in left.items()}
    return replace(
        found, zero_samples=gradients.samples, zero_voxels=gradients.voxels, unbounded=unbounded, longer=longer
    )


def _trained(model: Model, case: Case, images: Tensor) -> TrainedAgainst | None:
    """What the model was trained against, on this case."""
    level: Level | None = getattr(model, "trained", None)
    if level is None:
        return None
    words = in_words(case, level, images)
    return TrainedAgainst(norm=level.norm, words=words, per_voxel=case.threat(level).rms(images))


@torch.no_grad()
def consistency(case: Case, images: Tensor) -> Consistency:
    """The network exactly as it is deployed, in whatever mode it was left: call, call again, and one image alone."""
    # A single volume gets its own mirror image for company, paler: of another mean and spread.
    batch = images[:8] if len(images) > 1 else torch.cat([images, images.flip(-1) / 2])
    with inputs_untouched(case.network):
        first = first_resolution(case.network(batch))
        again = first_resolution(case.network(batch))
        single = torch.cat([first_resolution(case.network(batch[i : i + 1])) for i in range(len(batch))])
        repeated = torch.cat([first_resolution(case.network(batch[i : i + 1])) for i in range(len(batch))])
        # A few logits may lie between 0 and 1 by chance; voxels are many.
        outputs = first_resolution(case.network(images)) if isinstance(case.task, ClassificationTask) else first
    spread = first.double().std().clamp(min=1e-12)

    def change(a: Tensor, b: Tensor) -> float:
        return float((a - b).double().abs().max() / spread)

    return Consistency(
        repeat=max(change(first, again), change(single, repeated)),
        batch=change(first, single),
        training=sum(m.training for m in case.network.modules()),
        probabilities=are_probabilities(outputs, judged_alone(case.task)),
    )


class _ZeroGradients(NamedTuple):
    """Share of the inputs, and of their voxels."""

    samples: float
    voxels: float


def _gradients(
    case: Case, images: Tensor, target: Target, threats: list[Threat], generator: torch.Generator
) -> _ZeroGradients:
    """Gradients of the task's loss at the clean images and at random points of each level."""
    zero_samples = zero_voxels = total = 0.0
    if isinstance(case.task, ClassificationTask) or any(s.remaining > 0 for s in case.scores(case.images)):
        points = [images, *(images + t.random(images, t.radius(images), generator) for t in threats)]
    else:  # nothing is left to lose, as with false positives in an empty ground truth: its loss is flat
        points = []
    with frozen(case.network) as network:
        scorable = case.task.scorable(target)
        for point in points:
            x = point[scorable].detach().requires_grad_()
            if not len(x):
                continue
            labels = take(target, scorable)
            _, gradient = input_gradient(network(x), x, lambda o: case.task.sample_loss(o, labels), "eval")  # noqa: B023
            # What is smaller than the smallest normal number has lost its digits.
            usable = (gradient.abs() >= torch.finfo(gradient.dtype).tiny) & gradient.isfinite()
            if threats and threats[0].channels is not None:
                usable = usable[:, list(threats[0].channels)]
            rows = usable.flatten(1)
            zero_samples += float((~rows.any(1)).sum())
            zero_voxels += float((~rows).double().mean(1).sum())
            total += len(x)
    return _ZeroGradients(zero_samples / max(total, 1), zero_voxels / max(total, 1))


def _left_by(attacks: Sequence[Attack], case: Case, chosen: Tensor, generator: torch.Generator) -> dict[str, Score]:
    """Scores of the worst mixture that some attacks on the chosen inputs leave; ends as soon as all are zero.

    Inputs that share a score are attacked as the evaluation does it: each attack knows what those before it have found.
    """
    device = device_of(case.network)
    worst, task = case.images, case.task
    scores = _scores(case, worst, chosen)
    for attack in attacks:
        found = case.images.clone()
        for part in torch.split(chosen, IMAGES):
            images, target = case.images[part].to(device), to_device(take(case.target, part), device)
            result = continued(
                attack, case.network, images, target, task, worst=worst[part].to(device), generator=generator
            )
            found[part] = result.images.to(found)
        worst = case.combine(worst, found)
        task = case.aim(worst)
        scores = _scores(case, worst, chosen)
        if not any(score.remaining > 0 for score in scores.values()):
            break
    return scores


def _scores(case: Case, images: Tensor, chosen: Tensor) -> dict[str, Score]:
    """Scores by patient or image; images that were not chosen are left out."""
    scores = case.scores(images)
    if len(scores) == len(images):
        scores = [scores[i] for i in chosen.tolist()]
    return {s.case: s for s in scores}


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    """Buffers and random streams as before; a deployed model may well draw numbers or sit in training mode."""
    buffers = [(b, b.clone()) for b in network.buffers()]
    devices = {p.device for p in network.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)


def _relative(threat: Threat, images: Tensor, low: float, high: float) -> float:
    """Radius per voxel over the width of the intensities."""
    bounded = threat.box is not None and threat.boxed is None
    width = threat.box[1] - threat.box[0] if threat.box is not None and bounded else high - low
    entries = images[0].numel() if threat.channels is None else images[0, 0].numel() * len(threat.channels)
    radius = float(threat.radius(images).max())
    return radius / (math.sqrt(entries) if threat.norm == "l2" else 1.0) / max(width, 1e-12)


def _outside(values: Tensor, threat: Threat) -> float:
    """Share of the images that their box should contain and does not."""
    if threat.box is None or threat.beyond != "refuse":
        return 0.0
    slack = ROUNDING * (threat.box[1] - threat.box[0])
    rows = values.flatten(1)
    return float(((rows < threat.box[0] - slack) | (rows > threat.box[1] + slack)).any(1).double().mean())


def spread(names: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the names, evenly spread."""
    if len(names) <= count:
        return list(names)
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _mean(found: Sequence[CaseProbe], values: Sequence[float]) -> float:
    """Over the images of all cases."""
    return float(sum(v * f.images for v, f in zip(values, found, strict=True)) / sum(f.images for f in found))


def _all_known(values: list[T | None]) -> TypeGuard[list[T]]:
    return all(value is not None for value in values)
