"""The door to the evaluation from Python: one function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from monai_adv import given
from monai_adv.certificates import Smoothing
from monai_adv.errors import InputError
from monai_adv.evaluation.doors import chosen_cases, in_notebook, warn_of
from monai_adv.evaluation.evidence.group_table import GroupTable
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.models.handed_in import HandedIn
from monai_adv.evaluation.models.hosts import Options
from monai_adv.evaluation.outcome import Results
from monai_adv.evaluation.plans import Plan, PlanFunction
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.run.measure import measure, threads_for
from monai_adv.evaluation.settings import EvaluationSettings, Version, attacks_of
from monai_adv.foreign_text import say
from monai_adv.given import Box
from monai_adv.optional import require
from monai_adv.threats import Norm, RadiusUnit
from monai_adv.variations import checked_words


def evaluate(
    model: Any,
    images: Any = None,
    labels: Any = None,
    *,
    norm: Norm | None = None,
    eps: float | Sequence[float] | Mapping[Norm, float | Sequence[float]],
    unit: RadiusUnit | None = None,
    box: Box | None = None,
    attacks: Version | str | Plan | PlanFunction = "standard",
    folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    regions: bool | None = None,
    spacing: Sequence[float] | None = None,
    name: str | None = None,
    cases: int | Sequence[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    batch_size: int = 64,
    threads: int | None = None,
    options: Options | None = None,
    intended_use: str | None = None,
    acceptance: Sequence[Mapping[str, Any]] | None = None,
    smooth: float | Smoothing | None = None,
    subgroups: Any = None,
    subgroup_edges: Mapping[str, Sequence[float]] | None = None,
    variations: str | Sequence[str] | None = None,
    fuse: bool = False,
    verbose: bool = False,
) -> Results:
    """Measure how robust models are.

    The network is attacked where it is, in eval mode, and left as it was. Nothing stays on disk unless ``folder`` is
    given: the store is then a temporary folder that goes with the returned object.

    Args:
        model: a network: images ``(B, C, *spatial)`` to logits ``(B, K)``, or ``(B, K, *spatial)`` for a segmentation;
            or the path of a MONAI bundle or of a trained nnU-Net folder. Several, to be compared: a list, or a
            dictionary with names. A bundle's config is code that is run: measure only what you trust.
        images: for a network ``(N, C, *spatial)``, floating, as it gets them, a list of ``(C, *spatial)``, a
            DataLoader that does not shuffle, or a data set; for an nnU-Net the folder of the images.
        labels: for a network ``(N,)`` class indices, or ``(N, *spatial)`` label maps; None where ``images`` brings
            them, as pairs or as dictionaries with "image" and "label"; for an nnU-Net the folder of the labels.
        norm: of the perturbation, "l2" (default) or "linf"; left out where ``eps`` names norms.
        eps: radii, ascending; of both norms: ``{"l2": [0.1], "linf": [0.01, 0.03]}``.
        unit: of the radii, in units of network inputs: "rms" change per voxel (default for L2), or the "norm" itself
            (default for L-inf: the largest change); "raw": the default in units of the image files (HU for CT).
        box: lowest and highest intensity of an attacked image, in network units; None: as the model's host says, or no
            box.
        attacks: "quick", "standard" or "full"; or a plan of your own, a function of the threat and the number of
            classes that returns stages, or its name, "package.module:function" or "path/to/file.py:function". White
            noise is measured first in any case.
        folder: of the store, new, or one to go on with; the report lies there as well.
        classes: names of a network's classes, of a segmentation without the background.
        regions: a network's output channels are overlapping regions (a sigmoid each); default: where there is one.
        spacing: of a network's voxels in mm, for HD95; default: what MONAI's tensors know from their files, else 1.
        name: how tables call a single model.
        cases: the first so many patients or images, or names; default: all.
        device: of bundles and nnU-Nets; default: cuda if there is one. A network stays where it is.
        seed: of all random draws.
        batch_size: inputs attacked at once.
        threads: CPU threads; default: torch's.
        options: for a folder: further arguments of ``BundleSource`` (such as ``overrides``) or ``NNUNetSource`` (such
            as ``folds``).
        intended_use: what the model is for, in a few words; the report begins with it.
        acceptance: criteria that the figures have to meet; see :meth:`Purpose.stated`.
        smooth: standard deviation of Gaussian noise, or a :class:`~monai_adv.certificates.Smoothing`: what is attacked
            is then the majority vote over noisy copies, and it is certified as well, see
            :attr:`Results.certificates`. Some radius has to be of L2.
        subgroups: which group each case belongs to: a CSV file or a table with a column "case"; see
            :meth:`GroupTable.read`, which ``subgroup_edges`` are for as well.
        variations: natural variations to measure beside the attacks: "ct", "mri", "ultrasound" or "xray"; "auto" where
            the data set names its modality; or some of them, ["mri:motion", "mri:spike=1,3"] (severities). A network's
            inputs need their ``box``, whose ends are black and white.
        fuse: let the attacks search on a copy of each network whose BatchNorm is folded into its convolutions: the same
            function but for the last digits, and a pass takes half to three quarters of the time on a CPU. Scores are
            the network's own, and where it does not confirm what was found on the copy, the attack is repeated on it.
        verbose: print what the command line prints. Progress bars are shown then, and always in a notebook.

    Returns:
        the results; see :class:`Results`.

    Raises:
        InputError: something that cannot be used. What is in the folder stays as it was.

    Warns:
        UserWarning: some cases could not be used; they are in no figure.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
        >>> results = evaluate(network, images, labels, norm="linf", eps=[0.01, 0.03], box=(0, 1), attacks="quick")
        >>> list(results.frame().columns)
        ['model', 'case', 'level', 'norm', 'eps', 'unit', 'attack', 'measure', 'value']
    """
    require("monai_adv.evaluate", "matplotlib", "jinja2", "jsonschema")  # its folder holds the page
    limits = None if box is None else given.box("box", box)
    purpose = Purpose.stated(intended_use, acceptance)
    groups = None if subgroups is None else GroupTable.read(subgroups, subgroup_edges)
    place = None if folder is None else Path(folder).resolve()
    levels = tuple(_levels(norm, eps, unit))
    handed = HandedIn.of(model, name, device)
    if smooth is not None and not isinstance(smooth, Smoothing):
        smooth = Smoothing(given.number("smooth", smooth), seed=seed)
    settings = EvaluationSettings(
        levels,
        attacks_of(attacks),
        seed,
        batch_size,
        chosen_cases(cases),
        limits,
        handed.device.split(":")[0],
        threads_for(place, threads),
        smooth,
        checked_words(variations),
        fuse,
    )
    with handed.sources(images, labels, limits, classes, regions, spacing, options) as sources:
        temporary = TemporaryDirectory(prefix="monai-adv-") if place is None else None
        store = Path(temporary.name) if temporary else place
        assert store is not None
        try:
            tell = say if verbose else _silence
            finished = measure(
                sources, settings, store, say=tell, bars=verbose or in_notebook(), purpose=purpose, groups=groups
            )  # fmt: skip
            assert finished is not None  # nobody was asked
            results = Results(store, temporary, finished.figures)
        except BaseException:
            if temporary:
                temporary.cleanup()
            raise
    warn_of(results.problems, "results.problems")
    return results


def _silence(line: str) -> None:
    """Whoever works in Python looks at the results."""


def _levels(norm: Norm | None, eps: Any, unit: RadiusUnit | None) -> Iterator[Level]:
    """The radii, norm by norm.

    Raises:
        InputError: no radii, or a norm beside radii that name theirs.
    """
    if isinstance(eps, Mapping) and norm is not None:
        raise InputError.of("norm", norm, "none where eps names norms", "leave norm out, or give eps its radii alone")
    chains = eps if isinstance(eps, Mapping) else {"l2" if norm is None else norm: eps}
    for each, radii in chains.items():
        for radius in _radii(radii):
            yield Level.written(each, radius, unit)


def _radii(eps: Any) -> list[Any]:
    one = isinstance(eps, str) or not hasattr(eps, "__iter__") or getattr(eps, "ndim", 1) == 0
    return [eps] if one else list(eps)
