"""The smoothed version of a model in its place, so that what is attacked is what is certified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from monai_adv.certificates import Certification, SmoothedModel, Smoothing
from monai_adv.certificates.votes import answers_alike
from monai_adv.errors import InputError
from monai_adv.evaluation.models.plain import digest_of
from monai_adv.evaluation.models.protocol import Case, Model
from monai_adv.evaluation.records import Level
from monai_adv.metrics.score import Kind
from monai_adv.network_state import frozen
from monai_adv.tasks.base import are_probabilities
from monai_adv.tasks.segmentation import judged_alone
from monai_adv.variations.scan import Change

S = TypeVar("S", bound=Certification)


class SmoothedVersion:
    """See :class:`monai_adv.evaluation.models.protocol.Model`.

    Args:
        model: that is smoothed.
        settings: noise and draws.
    """

    def __init__(self, model: Model, settings: Smoothing) -> None:
        self.model, self.settings = model, settings
        self.name = f"{model.name}, smoothed"
        self.kind: Kind = model.kind
        self.classes, self.unit, self.problems = model.classes, model.unit, model.problems
        self.files: Sequence[Path] = model.files
        # What the evidence rests on is the model's: smoothing adds no file and keeps none in memory.
        self.data_files: Sequence[Path] = getattr(model, "data_files", ())
        self.data_in_memory: str = getattr(model, "data_in_memory", "")
        self.in_files: bool = getattr(model, "in_files", False)
        self.space = (
            f"the smoothed model: the majority vote over {settings.draws} copies of the input with Gaussian noise of "
            f"standard deviation {settings.sigma:g}; {model.space}"
        )

    @property
    def cases(self) -> tuple[str, ...]:
        """Names of the cases, in a fixed order."""
        return self.model.cases

    @property
    def fingerprint(self) -> str:
        """Of the model and of the noise."""
        return digest_of(self.model.fingerprint, self.settings)

    @property
    def trained(self) -> Level | None:
        """What the model was trained against, if that is known."""
        found: Level | None = getattr(self.model, "trained", None)
        return found

    def load(self, case: str) -> Case:
        """One case, whose network is a :class:`SmoothedModel` of the model's own.

        Raises:
            InputError: an unreadable file; what :func:`check_case` refuses; or a model of one's own whose cases cannot
                be given another network.
        """
        loaded = self.model.load(case)
        smoothed = self._smoothed(loaded)
        check_case(self.model, loaded, self.settings)
        return smoothed

    def load_varied(self, case: str, change: Change) -> Case:
        """As :meth:`load`, of images that were changed; see :class:`~monai_adv.evaluation.models.protocol.Varied`.

        They get no certificate, so that it does not matter how many draws one would need.
        """
        model: Any = self.model
        return self._smoothed(model.load_varied(case, change))

    @property
    def varied_at(self) -> str:
        """Where the model's images are changed."""
        model: Any = self.model
        return str(model.varied_at)

    @property
    def channel_names(self) -> Sequence[str]:
        """Of the model's images; a model whose images cannot be varied has none."""
        model: Any = self.model
        names: Sequence[str] = model.channel_names
        return names

    def _smoothed(self, loaded: Any) -> Case:
        if not hasattr(loaded, "with_network"):
            raise InputError.of(
                "smooth", self.settings.sigma, f"a model whose cases have with_network(network), not {self.model.name}",
                "return a Classifier or a Segmenter",
            )  # fmt: skip
        settings, regions = attacked_only(loaded, self.settings), judged_alone(loaded.task)
        network = SmoothedModel(
            loaded.network, settings.sigma, settings.draws, seed=settings.seed, regions=regions,
            channels=settings.channels, inputs_per_pass=settings.inputs_per_pass,
        )  # fmt: skip
        smoothed: Case = loaded.with_network(network.eval())
        return smoothed


def check_case(model: Model, case: Case, settings: Certification) -> None:
    """Refuse what cannot be certified, whatever the network says, before any draw.

    Raises:
        InputError: noise that is lost in the rounding of the images, too few draws for so many voxels, a network that
            answers by chance, or one that ends with a sigmoid.
    """
    settings = attacked_only(case, settings)
    settings.noise.check(case.images)
    if model.kind == "segmentation":
        regions = len(model.classes) if judged_alone(case.task) else 1
        settings.check_draws(case.images[:, 0].numel() * regions, settings.tau)
    else:
        settings.check_draws()
    with frozen(case.network) as network:
        answer = answers_alike(network, case.images, settings)
    if judged_alone(case.task) and are_probabilities(answer, alone=True):
        todo = "without its last sigmoid: a logit is a yes above 0, a probability above 0.5"
        raise InputError.of("network", "outputs that are all from 0 to 1", "logits", f"give the network {todo}")


def attacked_only(case: Case, settings: S) -> S:
    """The noise is where an attack may be."""
    return replace(settings, channels=case.threat(Level("l2", 1.0, "norm")).channels)
