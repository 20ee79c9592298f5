"""A trained nnU-Net folder as one differentiable function: exactly what ``nnUNetv2_predict`` computes.

Robustness belongs to what is deployed, so attacks go through the sliding window (see sliding_window.py), and Dice is
taken after the host's own export to the original image geometry.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nnunetv2.inference.export_prediction import convert_predicted_logits_to_segmentation_with_correct_shape
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from torch import Tensor

from monai_adv.errors import InputError
from nnunet_trainers.sliding_window import SlidingWindow
from nnunet_trainers.trained_folder import load_predictor

Files = Sequence[str | Path]
Labels = npt.NDArray[np.integer[Any]]


class DeployedModel:
    """One fold of a trained nnU-Net, ready to predict and to be attacked.

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
        self.network: torch.nn.Module = predictor.network.to(predictor.device).eval()
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
        fold: int | str = 0,
        checkpoint: str = "checkpoint_final.pth",
        device: str | torch.device = "cpu",
        mirroring: bool = False,
        *,
        name: str | None = None,
    ) -> DeployedModel:
        """Load a folder that any nnU-Net trainer wrote, ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``.

        Args:
            model_folder: holds plans.json, dataset.json and the folds.
            fold: number of the fold, or "all".
            checkpoint: file in the fold's folder.
            device: "cpu", "cuda", ...
            mirroring: average over mirrored images, as ``nnUNetv2_predict`` does unless given ``--disable_tta``.
            name: how reports call the model; default: the folder's name.

        Raises:
            InputError: something is missing, damaged, unsafe to load, or does not fit together.
        """
        predictor = load_predictor(Path(model_folder), fold, checkpoint, device, mirroring)
        return cls(predictor, name or Path(model_folder).resolve().name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device

    # ---------------------------------------------------------------- into network space

    def preprocess(self, image_files: Files) -> tuple[Tensor, dict[str, Any]]:
        """A case by the host's preprocessor.

        Args:
            image_files: one file per channel, in the order of dataset.json.

        Returns:
            ``(C, X, Y, Z)`` float image in network space on the CPU, and what :meth:`segmentation` needs to go back.

        Raises:
            InputError: wrong number of files, a missing or unreadable file, or a cascade (it needs the previous
                stage's segmentation as well).
        """
        data, _, properties = self._run_case(image_files, None)
        return data, properties

    def preprocess_labelled(
        self, image_files: Files, ground_truth_file: str | Path
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """As :meth:`preprocess`, with the ground truth ``(1, X, Y, Z)`` in network space in the middle."""
        return self._run_case(image_files, ground_truth_file)

    def preprocessed_case(self, folder: str | Path, case: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """A case that ``nnUNetv2_preprocess`` has stored: image, ground truth ``(1, X, Y, Z)``, properties.

        Args:
            folder: such as ``nnUNet_preprocessed/DATASET/nnUNetPlans_2d``.
            case: its name without an ending.

        Raises:
            InputError: no such folder or case.
        """
        if not (Path(folder) / f"{case}.pkl").is_file():
            raise InputError.of("case", str(Path(folder) / case), "a case in a folder of nnUNet_preprocessed")
        dataset = infer_dataset_class(str(folder))(str(folder), [case])
        data, ground_truth, _, properties = dataset.load_case(case)
        return _tensor(data[:]).float(), _foreground(ground_truth[:]), properties

    def _run_case(
        self, image_files: Files, ground_truth_file: str | Path | None
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        files = [str(f) for f in ([image_files] if isinstance(image_files, str | Path) else image_files)]
        labels = None if ground_truth_file is None else str(ground_truth_file)
        if self.configuration_manager.previous_stage_name is not None:
            raise InputError.of("model", self.name, "a model that needs images only, not the second stage of a cascade")
        if len(files) != len(self.channel_names):
            raise InputError.of("image_files", files, f"one file per channel, here {self.channel_names}")
        for file in filter(None, [*files, labels]):
            if not Path(file).is_file():
                raise InputError.of("image_files", file, "an existing image", "check the path")
        preprocessor = self.configuration_manager.preprocessor_class(verbose=False)
        try:
            data, ground_truth, properties = preprocessor.run_case(
                files, labels, self.plans_manager, self.configuration_manager, self.dataset_json
            )
        except (RuntimeError, AssertionError) as error:  # unreadable, or shapes that do not fit together
            raise InputError.of(
                "image_files", files, "readable images of one shape", f"nnU-Net says: {error}"
            ) from error
        return _tensor(data), _foreground(ground_truth), properties

    # ---------------------------------------------------------------- the function

    def as_network(self, patches_per_pass: int = 64) -> SlidingWindow:
        """The whole prediction in network space as a module, differentiable with respect to its input.

        2D: ``(B, C, H, W)`` with the slices as batch; 3D: ``(B, C, X, Y, Z)``. Any size; returns ``(B, K, *spatial)``
        logits in single precision (the host's are in half precision, from autocast too on a GPU).
        """
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
        ending = self.dataset_json["file_ending"]
        if output_file is not None and not (str(output_file).endswith(ending) and Path(output_file).parent.is_dir()):
            raise InputError.of("output_file", str(output_file), f"a file that ends in {ending}, in an existing folder")
        data, properties = self.preprocess(image_files)
        self.predictor.device = self.device  # the network may have been moved since
        labels = self.segmentation(self.predictor.predict_logits_from_preprocessed_data(data), properties)
        if output_file is not None:
            self.plans_manager.image_reader_writer_class().write_seg(labels, str(output_file), properties)
        return labels


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _foreground(ground_truth: npt.NDArray[Any]) -> Tensor:
    """The preprocessor marks voxels outside the body with -1; to the network they are background."""
    return _tensor(ground_truth).long().clamp(min=0)
