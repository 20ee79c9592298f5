"""A trained nnU-Net folder with images and labels, as the evaluation opens it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from monai_adv.errors import InputError
from monai_adv.evaluation.models.fingerprint import fingerprint
from monai_adv.evaluation.records import Level, level_of
from monai_adv.given import Box
from monai_adv.metrics.score import Kind
from monai_adv.variations.scan import Change
from nnunet_trainers.checkpoint import SECTION, load_data
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.evaluation.case import NNUNetCase, NNUNetPatch, bounds_of
from nnunet_trainers.evaluation.case_files import find_cases, listed_cases, listed_files
from nnunet_trainers.trained_folder import checkpoint_path
from nnunet_trainers.volume_dice import class_names

Mode = Literal["whole", "patch"]


@dataclass(frozen=True)
class NNUNetSource:
    """What has to be known to measure a trained nnU-Net; another process opens the same.

    Args:
        model_folder: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``, of any trainer that nnU-Net finds.
        images_folder, labels_folder: in nnU-Net's raw layout.
        folds: one, or several whose mean is deployed.
        held_out: the cases of each fold, on which that fold alone is measured: cross-validation. None: the mean of the
            folds is measured on ``cases``.
        checkpoint: file in the folds' folders.
        cases: names; None: all there are.
        listed: a dataset.json whose ``dataset`` lists the files of the cases; the two folders are not looked at then.
        mirroring: average over mirrored images, as ``nnUNetv2_predict`` does unless given ``--disable_tta``.
        mode: ``"whole"`` volumes through the sliding window, or one ``"patch"`` of each: faster, not what is deployed.
        device: "cpu", "cuda", ...
        name: how tables call the model; default: the folder's name.
        box: lowest and highest intensity that an attacked image may have, in network units; None: the range to which
            the plan clips CT or scales colour images, otherwise none.
        patches_per_pass: see :class:`SlidingWindow`; None: by the size of a patch.
        note: which data these are, for the report.
        trusted: packages besides nnU-Net's own whose networks and layers plans.json may name.

    Raises:
        InputError: a value that none of this can be.
    """

    model_folder: str
    images_folder: str
    labels_folder: str
    folds: tuple[int | str, ...] = (0,)
    checkpoint: str = "checkpoint_final.pth"
    cases: tuple[str, ...] | None = None
    mirroring: bool = False
    mode: Mode = "whole"
    device: str = "cpu"
    name: str | None = None
    box: Box | None = None
    patches_per_pass: int | None = None
    note: str = ""
    held_out: tuple[tuple[str, ...], ...] | None = None
    listed: str | None = None
    trusted: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "patch"):
            raise InputError.of("mode", self.mode, "'whole' or 'patch'")
        if not self.folds or len(set(self.folds)) < len(self.folds):
            raise InputError.of("folds", self.folds, "at least one fold, each once")
        if self.held_out is not None:
            every = [case for cases in self.held_out for case in cases]
            if len(self.held_out) != len(self.folds) or len(set(every)) < len(every):
                found = f"{len(self.held_out)} lists of {len(set(every))} different cases among {len(every)}"
                raise InputError.of("held_out", found, "one list for each fold, each case in one of them")
        if self.patches_per_pass is not None and self.patches_per_pass < 1:
            raise InputError.of("patches_per_pass", self.patches_per_pass, "a whole number >= 1")
        if self.box is not None and not (self.box[0] < self.box[1] and all(map(math.isfinite, self.box))):
            raise InputError.of("box", self.box, "(lowest, highest) with lowest < highest, or None")

    def open(self) -> EvaluatedNNUNet:
        """Load the model.

        Raises:
            InputError: why it does not load, or that there is no case.
        """
        try:
            return EvaluatedNNUNet(self)
        except InputError as error:
            raise error.about(self.name or Path(self.model_folder).resolve().name) from error


class EvaluatedNNUNet:
    """See :class:`monai_adv.evaluation.models.protocol.Model`.

    Raises:
        InputError: see :meth:`NNUNetSource.open`.
    """

    kind: Kind = "segmentation"
    varied_at = "the images as the files hold them, before nnU-Net's preprocessing"

    def __init__(self, source: NNUNetSource) -> None:
        self.source = source
        self._fold_of: dict[str, int | str] = {}
        if source.held_out is not None:
            for fold, cases in zip(source.folds, source.held_out, strict=True):
                self._fold_of |= dict.fromkeys(cases, fold)
        self._folds = source.folds if source.held_out is None else source.folds[:1]
        self.model = model = self._open(self._folds)
        if model.configuration_manager.previous_stage_name is not None:
            raise InputError.of(
                "model", model.name, "a model that needs images only, not the second stage of a cascade",
                "measure the first stage, 3d_lowres, or 3d_fullres",
            )  # fmt: skip
        self.network = model.as_network(source.patches_per_pass)
        ending = model.dataset_json["file_ending"]
        wanted = tuple(self._fold_of) if source.held_out is not None else source.cases
        if source.listed is not None:
            listed = listed_files(source.listed) or {}
            count = _files_per_case(model, [case.image_files[0] for case in listed.values() if case.image_files])
            files, problems = listed_cases(source.listed, wanted, files=count)
        else:
            count = _files_per_case(model, sorted(Path(source.images_folder).glob(f"*{ending}")))
            files, problems = find_cases(source.images_folder, source.labels_folder, ending, wanted, files=count)
        if not files:
            raise InputError.of(
                "cases", "; ".join(problems[:3]), "at least one case with all its files",
                "images are called CASE_0000" + ending + ", labels CASE" + ending,
            )  # fmt: skip
        self.name = model.name
        self.classes = class_names(model.dataset_json["labels"])
        self._files = {case.name: case for case in files}
        self.cases = tuple(self._files)
        self.problems = tuple(problems)

    in_files = True

    @property
    def fingerprint(self) -> str:
        """Of what is in no file: how the model is deployed."""
        source = self.source
        return fingerprint(source.folds, source.held_out, source.mirroring, source.mode, source.box, self.cases)

    @property
    def files(self) -> list[Path]:
        """Weights, plans and data."""
        source, folder = self.source, Path(self.source.model_folder)
        weights = [checkpoint_path(folder, fold, source.checkpoint) for fold in source.folds]
        return [*weights, folder / "plans.json", folder / "dataset.json", *self.data_files]

    @property
    def data_files(self) -> list[Path]:
        """Images and labels, with the json files that give the spacing of some formats."""
        data = [file for case in self._files.values() for file in (*case.image_files, case.ground_truth_file)]
        ending = self.model.dataset_json["file_ending"]
        beside = {file.with_name(file.name.removesuffix(ending) + ".json") for file in data}
        beside |= {file.with_name(f"{case.name}.json") for case in self._files.values() for file in case.image_files}
        known = [file for file in sorted(beside) if file.is_file()]
        return [*data, *known]

    @cached_property
    def trained(self) -> Level | None:
        """What the first fold was trained against, if its checkpoint says so."""
        file = checkpoint_path(Path(self.source.model_folder), self.source.folds[0], self.source.checkpoint)
        return level_of(load_data(file).get(SECTION, {}).get("threat"))

    @property
    def space(self) -> str:
        """What is attacked."""
        model, source = self.model, self.source
        mirroring = "on" if model.mirror_axes else "off"
        if source.mode == "patch":
            size = " × ".join(map(str, model.patch_size))
            what = (
                f"one patch ({size}) per volume at the centre of the foreground, Dice in network space: faster, and "
                f"not the deployed measure; mirroring {mirroring}"
            )
        else:
            inputs = "each slice" if model.is_2d else "each volume"
            what = (
                f"whole volumes through nnU-Net's sliding window (Gaussian weighting, half overlap, mirroring "
                f"{mirroring}), Dice and HD95 in the original geometry; {inputs} has a radius of its own"
            )
        folds = f"mean of the folds {', '.join(map(str, source.folds))}" if len(source.folds) > 1 else ""
        if source.held_out is not None:
            folds = f"cross-validation: folds {', '.join(map(str, source.folds))}, each on its own validation cases"
        differs = ""
        if source.mode == "whole" and not model.mirror_axes and model.predictor.allowed_mirroring_axes:
            differs = (
                "nnU-Net's own validation (summary.json) averages over mirrored images, which is why its clean figures "
                "differ; --mirroring measures that"
            )
        return "; ".join(filter(None, [what, folds, source.note, self._range(), differs]))

    def _range(self) -> str:
        """What bounds an attacked image, in words."""
        model = self.model
        box, beyond, boxed = bounds_of(model, self.source.box)
        if box is None or beyond == "refuse":
            if "CTNormalization" not in model.configuration_manager.normalization_schemes:
                return ""
            return "attacked images may leave the range to which nnU-Net clips CT: no file could hold those"
        of = f" (of {', '.join(model.channel_names[c] for c in boxed)} only)" if boxed is not None else ""
        if beyond == "keep":
            return f"attacked images keep to the range of the files, 0 to 255{of}"
        intensities = model.plans_manager.foreground_intensity_properties_per_channel[str((boxed or (0,))[0])]
        low, high = (intensities[f"percentile_{p}"] for p in ("00_5", "99_5"))
        return (
            f"attacked images keep to the range to which nnU-Net clips CT, {low:.6g} to {high:.6g} in the files{of}, "
            "and voxels that are beyond it in the file stay as they are: no small change of the file would show there"
        )

    @property
    def unit(self) -> str:
        """The unit of network inputs."""
        raw = self.model.raw_unit_of_all
        schemes = self.model.configuration_manager.normalization_schemes
        channels = ", ".join(f"{n} {s}" for n, s in zip(self.model.channel_names, schemes, strict=True))
        if raw is not None:
            return f"units of the normalised image, 1 = {raw:.6g} in the files ({channels})"
        return f"standard deviations of the normalised image ({channels})"

    def load(self, case: str) -> NNUNetCase:
        """One patient.

        Raises:
            InputError: an unknown name, an unreadable file, or unknown labels.
        """
        return self._load(case, None)

    def load_varied(self, case: str, change: Change) -> NNUNetCase:
        """One patient whose images were changed as the files hold them: what follows is what is deployed."""
        return self._load(case, change)

    @property
    def channel_names(self) -> tuple[str, ...]:
        """From dataset.json."""
        return tuple(self.model.channel_names)

    def _load(self, case: str, change: Change | None) -> NNUNetCase:
        if case not in self._files:
            raise InputError.of("case", case, f"one of {', '.join(self.cases)}")
        if self._fold_of and self._folds != (self._fold_of[case],):  # one model at a time is in memory
            self._folds = (self._fold_of[case],)
            self.model = self._open(self._folds)
            self.network = self.model.as_network(self.source.patches_per_pass)
        kind = NNUNetPatch if self.source.mode == "patch" else NNUNetCase
        return kind(self.model, self._files[case], self.network, self.source.box, change)

    def _open(self, folds: tuple[int | str, ...]) -> DeployedModel:
        source = self.source
        return DeployedModel.from_folder(
            source.model_folder, folds, source.checkpoint, source.device, source.mirroring,
            name=source.name, trusted=source.trusted,
        )  # fmt: skip


def _files_per_case(model: DeployedModel, files: Sequence[Path]) -> int:
    """See :meth:`DeployedModel.files_per_case`, by the first file that can be read."""
    for file in files[:3]:
        if (count := model.files_per_case(file)) is not None:
            return count
    return len(model.channel_names)
