"""A trained nnU-Net folder as one differentiable function: exactly what ``nnUNetv2_predict`` computes.

Robustness belongs to what is deployed, so attacks go through the sliding window (see sliding_window.py), and Dice is
taken after the host's own export to the original image geometry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.geometry import Geometry, compare
from monai_adv.tasks.base import whole_labels
from monai_adv.threats import Beyond
from monai_adv.variations.base import NotApplicable
from monai_adv.variations.scan import Change, changed
from nnunet_trainers.file_checks import check_complete, check_no_nan
from nnunet_trainers.raw_units import note_raw_units, plan_range, plan_raw_unit_of_all
from nnunet_trainers.sliding_window import SlidingWindow
from nnunet_trainers.trained_folder import load_predictor

VOXELS_PER_PASS = 2**21
Files = Sequence[str | Path]
Labels = npt.NDArray[np.integer[Any]]


class MeanOfFolds(nn.Module):
    """Mean logits of several folds, as ``nnUNetv2_predict -f 0 1 2`` has them: patches or volumes, the mean is linear.

    Args:
        network: the architecture.
        weights: one state dict per fold.
    """

    def __init__(self, network: nn.Module, weights: Sequence[dict[str, Tensor]]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(deepcopy(network) for _ in weights)
        for fold, parameters in zip(self.folds, weights, strict=True):
            fold.load_state_dict(parameters)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, C, *spatial)`` to ``(N, K, *spatial)``."""
        return torch.stack([fold(images) for fold in self.folds]).mean(0)


class DeployedModel:
    """One fold of a trained nnU-Net, or the mean of several, ready to predict and to be attacked.

    Use :meth:`from_folder`. "Network space" below is what the network sees: transposed, cropped, resampled and
    normalised by the host's preprocessor; the unit is standard deviations of the normalised image. A 2D network takes
    the slices along the first axis X as its batch.

    Args:
        predictor: the host's predictor after its own initialisation.
        name: how reports call the model.

    Attributes:
        network: the network with the trained weights, deep supervision off, in eval mode.
        plans_manager, configuration_manager, dataset_json, label_manager: the host's objects.
        channel_names: of the images, from dataset.json.
        patch_size: one number per spatial axis.
        is_2d: whether the network works slice by slice.
        mirror_axes: the axes over which predictions are averaged; empty without mirroring.
    """

    def __init__(self, predictor: nnUNetPredictor, name: str) -> None:
        self.predictor = predictor
        self.name = name
        self.network: nn.Module = predictor.network.to(predictor.device).eval()
        if len(predictor.list_of_parameters) > 1:
            self.network = MeanOfFolds(predictor.network, predictor.list_of_parameters).eval()
        self.plans_manager = predictor.plans_manager
        self.configuration_manager = predictor.configuration_manager
        self.dataset_json: dict[str, Any] = predictor.dataset_json
        self.label_manager = predictor.label_manager
        channels = self.dataset_json.get("channel_names") or self.dataset_json["modality"]
        self.channel_names: list[str] = list(channels.values())
        self.patch_size: tuple[int, ...] = tuple(int(n) for n in self.configuration_manager.patch_size)
        self.is_2d = len(self.patch_size) == 2
        self.mirror_axes: tuple[int, ...] = tuple((predictor.use_mirroring and predictor.allowed_mirroring_axes) or ())

    @classmethod
    def from_folder(
        cls,
        model_folder: str | Path,
        fold: int | str | Sequence[int | str] = 0,
        checkpoint: str = "checkpoint_final.pth",
        device: str | torch.device = "cpu",
        mirroring: bool = False,
        *,
        name: str | None = None,
        trusted: Sequence[str] = (),
    ) -> DeployedModel:
        """Load a folder that any nnU-Net trainer wrote, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.

        Args:
            model_folder: holds plans.json, dataset.json and the folds.
            fold: number of the fold, or "all"; several: the mean of their logits, as ``nnUNetv2_predict`` takes it.
            checkpoint: file in the fold's folder.
            device: "cpu", "cuda", ...
            mirroring: average over mirrored images, as ``nnUNetv2_predict`` does unless given ``--disable_tta``.
            name: how reports call the model; default: the folder's name.
            trusted: packages besides nnU-Net's own whose networks and layers plans.json may name.

        Raises:
            InputError: something is missing, damaged, unsafe to load, or does not fit together.
        """
        folds = [fold] if isinstance(fold, int | str) else list(fold)
        predictor = load_predictor(Path(model_folder), folds, checkpoint, device, mirroring, trusted)
        try:
            return cls(predictor, name or Path(model_folder).resolve().name)
        except RuntimeError as error:
            text = " ".join(str(error).split())[:200]
            raise InputError.of("fold", folds, "folds of one architecture", f"PyTorch says: {text}") from error

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    # ---------------------------------------------------------------- into network space

    def preprocess(self, image_files: Files) -> tuple[Tensor, dict[str, Any]]:
        """A case by the host's preprocessor.

        Args:
            image_files: one file per channel, in the order of dataset.json, or as many as :meth:`files_per_case` says.

        Returns:
            ``(C, X, Y, Z)`` float image in network space on the CPU, and what :meth:`segmentation` needs to go back,
            with the ``raw_units`` of the channels (see raw_units.py).

        Raises:
            InputError: wrong number of files, a missing or unreadable file, or a cascade (it needs the previous
                stage's segmentation as well).
        """
        data, _, properties = self._run_case(image_files, None)
        return data, properties

    def preprocess_labelled(
        self, image_files: Files, ground_truth_file: str | Path, change: Change | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """As :meth:`preprocess`, with the ground truth ``(1, X, Y, Z)`` in network space in the middle.

        The properties also have the ``truth`` in its original geometry, its ``truth_spacing`` in mm, and ``notes`` on
        what is odd about that geometry.

        Args:
            image_files, ground_truth_file: of the case.
            change: what happens to the image that the files hold, before all preprocessing.

        Raises:
            InputError: see :meth:`preprocess`; labels that the model does not know, or of another spacing.
            NotApplicable: a change that does not exist for this image.
        """
        truth, described = self._read_labels(ground_truth_file)
        data, labels, properties = self._run_case(image_files, ground_truth_file, change)
        first = image_files if isinstance(image_files, str | Path) else image_files[0]
        label_geometry = _geometry(ground_truth_file, described, channel="")
        notes = compare(_geometry(first, properties, channel="_0000"), label_geometry)
        more = {"truth": truth, "truth_spacing": label_geometry.spacing, "notes": notes}
        return data, labels, {**properties, **more}

    def files_per_case(self, file: str | Path) -> int | None:
        """Into how many files the channels of an image are divided, by what the host's reader finds in the first.

        A file may hold several: a colour image has one file and three channels. None if it cannot be read.

        Raises:
            InputError: it holds more channels than the model has, or a part that does not add up.
        """
        channels = len(self.channel_names)
        if channels == 1:
            return 1
        if (held := self._channels_in([file])) is None:
            return None
        if channels % held:
            raise InputError.of("image_files", f"{file} with {held} channels", f"the channels {self.channel_names}")
        return channels // held

    def _channels_in(self, files: Files) -> int | None:
        """None if they cannot be read."""
        try:
            return len(self.plans_manager.image_reader_writer_class().read_images([*map(str, files)])[0])
        except Exception:  # every reader raises kinds of its own
            return None

    def _run_case(
        self, image_files: Files, ground_truth_file: str | Path | None, change: Change | None = None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        files = [str(f) for f in ([image_files] if isinstance(image_files, str | Path) else image_files)]
        labels = None if ground_truth_file is None else str(ground_truth_file)
        used = files if labels is None else [*files, labels]
        if self.configuration_manager.previous_stage_name is not None:
            raise InputError.of("model", self.name, "a model that needs images only, not the second stage of a cascade")
        for file in used:
            if not Path(file).is_file():
                raise InputError.of("image_files", file, "an existing image", "check the path")
            check_complete("ground_truth_file" if file == labels else "image_files", file)
        if not files or (len(files) != len(self.channel_names) and len(files) != self.files_per_case(files[0])):
            raise InputError.of("image_files", files, f"one file per channel, here {self.channel_names}")
        preprocessor = self.configuration_manager.preprocessor_class(verbose=False)
        raw_units = note_raw_units(preprocessor)
        _round_labels(preprocessor)
        if change is not None:
            _change_image(preprocessor, change)
        try:
            data, ground_truth, properties = preprocessor.run_case(
                files, labels, self.plans_manager, self.configuration_manager, self.dataset_json
            )
        except NotApplicable:
            raise
        except Exception as error:  # unreadable, or shapes that do not fit; every reader raises kinds of its own
            self._check_channels(self._channels_in(files), files)
            raise InputError.of("image_files", used, "readable images of one shape", _told(error)) from error
        self._check_channels(len(data), files)
        if not np.isfinite(data).all():
            raise InputError.of("image_files", files, "finite intensities", "there is NaN or infinity in them")
        return _tensor(data), _foreground(ground_truth), {**properties, "raw_units": raw_units}

    def _check_channels(self, found: int | None, files: Files) -> None:
        if found is not None and found != len(self.channel_names):
            raise InputError.of("image_files", f"{files} with {found} channels", f"the channels {self.channel_names}")

    def _read_labels(self, file: str | Path) -> tuple[Labels, dict[str, Any]]:
        """A ground truth in its original geometry, and what the host's reader says about it.

        Raises:
            InputError: it cannot be read, or holds values that the model's dataset.json does not know.
        """
        check_complete("ground_truth_file", file)
        try:
            labels, properties = self.plans_manager.image_reader_writer_class().read_seg(str(file))
        except Exception as error:  # every reader raises kinds of its own
            raise InputError.of("ground_truth_file", str(file), "a readable label map", _told(error)) from error
        name = f"ground truth {file}"
        check_no_nan(name, file)
        labels = whole_labels(name, _tensor(labels)).numpy()
        ignored = [self.label_manager.ignore_label] if self.label_manager.has_ignore_label else []
        known = {int(v) for v in [*self.label_manager.all_labels, *ignored]}
        unknown = sorted(set(np.unique(labels).tolist()) - known)
        if unknown:
            raise InputError.of(
                "ground_truth_file",
                f"{file} with the values {', '.join(map(str, unknown[:10]))}",
                f"the model's labels {sorted(known)}",
            )
        return labels[0], properties

    @property
    def raw_unit_of_all(self) -> float | None:
        """Raw intensity per network unit (HU for CT) if the plan fixes the same for all cases and channels."""
        return plan_raw_unit_of_all(self.plans_manager, self.configuration_manager)

    @property
    def plan_range(self) -> tuple[float, float, Beyond, tuple[int, ...]] | None:
        """What :func:`~nnunet_trainers.raw_units.plan_range` says, and of which channels.

        None without a range, or if several channels have different ones.
        """
        intensities = self.plans_manager.foreground_intensity_properties_per_channel
        schemes = enumerate(self.configuration_manager.normalization_schemes)
        ranges = {c: plan_range(scheme, intensities.get(str(c), {})) for c, scheme in schemes}
        known = {c: found for c, found in ranges.items() if found is not None}
        return (*next(iter(known.values())), tuple(known)) if len(set(known.values())) == 1 else None

    # ---------------------------------------------------------------- the function

    def as_network(self, patches_per_pass: int | None = None) -> SlidingWindow:
        """The whole prediction in network space as a module, differentiable with respect to its input.

        2D: ``(B, C, H, W)`` with the slices as batch; 3D: ``(B, C, X, Y, Z)``. Any size; returns ``(B, K, *spatial)``
        logits in single precision (the host's are in half precision, from autocast too on a GPU).

        Args:
            patches_per_pass: see :class:`SlidingWindow`; default: two million voxels, folds and mirrored views
                counted: about 5 GB with gradients for a network with 32 features at full resolution.
        """
        if patches_per_pass is None:
            views = 2 ** len(self.mirror_axes) * len(self.predictor.list_of_parameters)
            patches_per_pass = max(1, VOXELS_PER_PASS // (math.prod(self.patch_size) * views))
        heads = int(self.label_manager.num_segmentation_heads)
        window = SlidingWindow(
            self.network, self.patch_size, heads, mirror_axes=self.mirror_axes, patches_per_pass=patches_per_pass
        )
        return window.eval()

    def to_inputs(self, volume: Tensor) -> Tensor:
        """``(C, X, Y, Z)`` as the network's inputs: ``(X, C, Y, Z)`` for 2D, ``(1, C, X, Y, Z)`` for 3D."""
        return volume.transpose(0, 1) if self.is_2d else volume[None]

    def to_volume(self, outputs: Tensor) -> Tensor:
        """The way back: ``(X, K, Y, Z)`` or ``(1, K, X, Y, Z)`` to ``(K, X, Y, Z)``."""
        return outputs.transpose(0, 1) if self.is_2d else outputs[0]

    def segmentation(self, logits: Tensor, properties: dict[str, Any]) -> Labels:
        """``(K, X, Y, Z)`` logits in network space as a label map in the original geometry, by the host's export."""
        labels: Labels = convert_predicted_logits_to_segmentation_with_correct_shape(
            logits.detach().float().cpu(),
            self.plans_manager,
            self.configuration_manager,
            self.label_manager,
            properties,
            num_threads_torch=torch.get_num_threads(),
        )
        return labels

    def predict(self, image_files: Files, output_file: str | Path | None = None) -> Labels:
        """The label map of ``nnUNetv2_predict``, to the voxel: the host's predictor, half precision included.

        Args:
            image_files: one file per channel.
            output_file: where the host writes it as well, with the data set's file ending.

        Raises:
            InputError: see :meth:`preprocess`, or another file ending, or a folder that does not exist.
        """
        self.check_output(output_file)
        data, properties = self.preprocess(image_files)
        self.predictor.device = self.device  # the network may have been moved since
        labels = self.segmentation(self.predictor.predict_logits_from_preprocessed_data(data), properties)
        self.write(labels, output_file, properties)
        return labels

    def check_output(self, output_file: str | Path | None) -> None:
        """Refuse, before anything is computed, a label map's file that the host could not write.

        Raises:
            InputError: another ending than the data set's, or a folder that does not exist.
        """
        ending = self.dataset_json["file_ending"]
        if output_file is not None and not (str(output_file).endswith(ending) and Path(output_file).parent.is_dir()):
            raise InputError.of("output_file", str(output_file), f"a file that ends in {ending}, in an existing folder")

    def write(self, labels: Labels, output_file: str | Path | None, properties: dict[str, Any]) -> None:
        """Write a label map as the host does; None: nowhere."""
        if output_file is not None:
            self.plans_manager.image_reader_writer_class().write_seg(labels, str(output_file), properties)


def _round_labels(preprocessor: Any) -> None:
    """The preprocessor cuts 0.9999, which :meth:`DeployedModel.read_labels` takes for 1, off to 0."""
    run = preprocessor.run_case_npy

    def rounded(data: Any, seg: npt.NDArray[Any] | None, *more: Any) -> Any:
        return run(data, None if seg is None else np.rint(seg), *more)

    preprocessor.run_case_npy = rounded


NO_SPACING = 999
"""Between the slices of a picture without spacing, by the host's readers."""


def _change_image(preprocessor: Any, change: Change) -> None:
    """Let the preprocessor see another image than its reader has read."""
    run = preprocessor.run_case_npy

    def with_other_image(data: npt.NDArray[Any], seg: Any, properties: dict[str, Any], *more: Any) -> Any:
        spacing = properties["spacing"]
        known = None if spacing[0] == NO_SPACING else [float(mm) for mm in spacing]
        image = torch.from_numpy(np.asarray(data, dtype=np.float32))
        return run(changed(image, change, spacing=known).numpy(), seg, properties, *more)

    preprocessor.run_case_npy = with_other_image


def _told(error: Exception) -> str:
    """What the host says; the text of a KeyError is only the key."""
    alone = str(error) and not isinstance(error, LookupError)
    return f"nnU-Net says: {error if alone else repr(error)}".rstrip(".")


def _geometry(file: str | Path, properties: dict[str, Any], *, channel: str) -> Geometry:
    """What one of the host's readers has said about a file.

    Args:
        file: with the channel's number, if any, before its ending.
        properties: as the reader gives them.
        channel: what the file's name has more than that of a JSON file with its spacing.
    """
    spacing = tuple(float(s) for s in properties["spacing"])
    if "sitk_stuff" in properties:
        header = properties["sitk_stuff"]
        return Geometry(str(file), spacing, tuple(header["origin"]), tuple(header["direction"]))
    if "nibabel_stuff" in properties:
        return Geometry.from_affine(str(file), properties["nibabel_stuff"]["original_affine"], spacing)
    path = Path(file)
    beside = path.with_name(path.stem.removesuffix(channel) + ".json")
    return Geometry(str(beside if beside.is_file() else file), spacing)


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _foreground(ground_truth: npt.NDArray[Any]) -> Tensor:
    """The preprocessor marks voxels outside the body with -1; to the network they are background."""
    return _tensor(ground_truth).long().clamp(min=0)
