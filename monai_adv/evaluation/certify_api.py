"""The door to certificates from Python: one function, with the words of :func:`monai_adv.evaluate`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_adv.certificates import Certification
from monai_adv.evaluation.certified_outcome import Certificates
from monai_adv.evaluation.doors import chosen_cases, in_notebook, warn_of
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.models.handed_in import HandedIn
from monai_adv.evaluation.models.hosts import Options
from monai_adv.evaluation.run.certify import certify_models
from monai_adv.optional import require


def certify(
    model: Any,
    images: Any = None,
    labels: Any = None,
    *,
    sigma: float,
    n: int = 1000,
    n0: int = 100,
    alpha: float = 0.001,
    tau: float = 0.75,
    folder: str | Path | None = None,
    classes: Sequence[str] | None = None,
    regions: bool | None = None,
    name: str | None = None,
    cases: int | Sequence[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    inputs_per_pass: int = 64,
    options: Options | None = None,
    intended_use: str | None = None,
    acceptance: Sequence[Mapping[str, Any]] | None = None,
    verbose: bool = False,
) -> Certificates:
    """Prove what no attack can do to the smoothed versions of models; see :mod:`monai_adv.certificates`.

    Args:
        model, images, labels, classes, regions, name, cases, device, options: as in :func:`monai_adv.evaluate`.
        sigma: standard deviation of the noise in every voxel, in the unit of the network's input.
        n: draws that count how often an answer comes.
        n0: draws before them, that choose the answer.
        alpha: probability that what is said of an image is wrong.
        tau: of a segmentation: how often a voxel's class must come.
        folder: where finished cases are kept, new, or one to go on with; it gets a table and ``evidence.json`` as well,
            see ``monai-adv verify``. Default: nothing is written.
        seed: of the draws.
        inputs_per_pass: noisy copies in one pass of the network.
        intended_use: what the model is for, in a sentence or two, for the evidence.
        acceptance: criteria for the lower bounds, see :meth:`Purpose.stated`; each is passed or not decided.
        verbose: show how far it is, as a notebook always does.

    Returns:
        the certificates; their ``frame()`` has the columns of ``Results.frame()``.

    Raises:
        InputError: something that cannot be used, or too few draws to show anything.

    Warns:
        UserWarning: some cases could not be used; they are in no figure.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> images, labels = torch.rand(20, 1, 4, 4), torch.arange(20) % 3
        >>> certificates = certify(network, images, labels, sigma=0.25, n=100)
        >>> certificates.at(0.0) >= certificates.at(0.1)
        True
    """
    settings = Certification(sigma, n0, n, alpha, tau, seed, None, inputs_per_pass)
    purpose = Purpose.stated(intended_use, acceptance)
    place = None if folder is None else Path(folder).resolve()
    if folder is not None:
        require("monai_adv.certify(folder=...)", "pandas", "jsonschema")
    handed = HandedIn.of(model, name, device)
    with handed.sources(images, labels, classes=classes, regions=regions, options=options) as sources:
        found = certify_models(
            sources,
            settings,
            place,
            cases=chosen_cases(cases),
            device=handed.device,
            bars=verbose or in_notebook(),
            purpose=purpose,
        )
    warn_of(found.problems, "problems")
    return found
