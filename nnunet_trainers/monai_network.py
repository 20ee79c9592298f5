"""A trained nnU-Net as a network for MONAI.

``monai.apps.nnunet.ModelnnUNetWrapper`` fails for every trainer on nnunetv2 2.7 or newer, because it calls the older
signature, and never finds trainers outside nnunetv2. This one leaves loading and prediction to the host's own code. In
a bundle::

    "network_def": {"_target_": "nnunet_trainers.NNUNetModel", "model_folder": "$@bundle_root + '/models'"}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from monai_adv.certificates import NO_CLASS, SmoothedModel
from monai_adv.errors import InputError
from nnunet_trainers.deployed import DeployedModel, Files, Labels


class NNUNetModel(nn.Module):
    """Preprocessed images in, logits out; differentiable, so that it can be attacked.

    The checkpoint is read with ``weights_only=True`` before anything else touches it, and what plans.json and
    dataset.json name has to be nnU-Net's own: files that could run code are refused. Checkpoints of our trainers need
    no exception for that, those of nnU-Net's own trainers hold numpy numbers, which are allowed.

    The windows, their weights and the averaging over mirrored views are nnU-Net's, so a MONAI bundle uses
    ``SimpleInferer``, not ``SlidingWindowInferer``.

    Args:
        model_folder: ``nnUNet_results/DATASET/TRAINER__PLANS__CONFIGURATION``, of any trainer that nnU-Net finds.
        fold: number of the fold, or "all".
        checkpoint: file in the fold's folder.
        device: "cpu", "cuda", ...
        mirroring: average over mirrored images, as ``nnUNetv2_predict`` does unless given ``--disable_tta``.
        patches_per_pass: patches that go through the network together.
        trusted: packages besides nnU-Net's own whose networks and layers plans.json may name.
        smooth: standard deviation of Gaussian noise, in network units: the model is then the majority vote over noisy
            copies of the image, which certificates are about (:class:`~monai_adv.certificates.SmoothedModel`). Its
            logits are logarithms of shares of votes. A 2D model smooths each slice for itself.
        draws: copies that vote.
        seed: of their noise; the same image gets the same answer each time.

    Attributes:
        deployed: the model as :class:`DeployedModel`, without the noise.

    Raises:
        InputError: see :meth:`DeployedModel.from_folder`.
    """

    def __init__(
        self,
        model_folder: str | Path,
        fold: int | str = 0,
        checkpoint: str = "checkpoint_final.pth",
        device: str | torch.device = "cpu",
        *,
        mirroring: bool = False,
        patches_per_pass: int = 64,
        trusted: Sequence[str] = (),
        smooth: float | None = None,
        draws: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.deployed = DeployedModel.from_folder(model_folder, fold, checkpoint, device, mirroring, trusted=trusted)
        self.window: nn.Module = self.deployed.as_network(patches_per_pass)
        if smooth is not None:
            regions = bool(self.deployed.label_manager.has_regions)
            at_once = patches_per_pass if self.deployed.is_2d else 1  # whole volumes, one copy in memory at a time
            self.window = SmoothedModel(
                self.window, smooth, draws, seed=seed, regions=regions, inputs_per_pass=at_once
            ).eval()  # fmt: skip
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits of images in network space.

        Args:
            image: ``(B, C, X, Y, Z)`` as :meth:`preprocess` gives them (nnU-Net's own axes, spacing and normalisation),
                tensor or MetaTensor; a 2D model also takes slices ``(B, C, H, W)``, and goes through a volume slice by
                slice along X.

        Returns:
            ``(B, K, *spatial)`` logits; a MetaTensor with the image's metadata if the image is one.

        Raises:
            InputError: wrong number of axes or channels.
        """
        channels = len(self.deployed.channel_names)
        if image.ndim < 2 or image.shape[1] != channels:
            raise InputError.of("image", f"shape {tuple(image.shape)}", f"(B, {channels}, *spatial)")
        values = image.as_tensor() if isinstance(image, MetaTensor) else image
        logits = self._by_slice(self.window, values)
        return MetaTensor(logits, meta=image.meta) if isinstance(image, MetaTensor) else logits

    def decide(self, image: Tensor, alpha: float = 0.001) -> Tensor:
        """What the smoothed model says, and where it abstains.

        Args:
            image: as for :meth:`forward`.
            alpha: probability that the answer for an image is not that of infinitely many draws, in any voxel.

        Returns:
            ``(B, *spatial)`` classes, of a model of regions ``(B, R, *spatial)`` 0 or 1;
            :data:`~monai_adv.certificates.NO_CLASS` where the draws cannot tell.

        Raises:
            InputError: the model was not loaded with ``smooth``, or noise that is lost in the rounding of the image.
        """
        smoothed = self._smoothed()
        if smoothed.regions:
            return self._by_slice(lambda values: smoothed.predict(values, alpha), image)
        return self._by_slice(lambda values: smoothed.predict(values, alpha)[:, None], image)[:, 0]

    def _smoothed(self) -> SmoothedModel:
        if not isinstance(self.window, SmoothedModel):
            raise InputError.of("smooth", None, "a standard deviation", "only a smoothed model abstains")
        return self.window

    def _by_slice(self, function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
        if self.deployed.is_2d and values.ndim == 5:
            slices = function(values.transpose(1, 2).flatten(0, 1))
            return slices.reshape(len(values), values.shape[2], *slices.shape[1:]).transpose(1, 2)
        return function(values)

    def preprocess(self, image_files: Files) -> Tensor:
        """``(1, C, X, Y, Z)`` image in network space, on the model's device; one file per channel."""
        return self.deployed.preprocess(image_files)[0][None].to(self.deployed.device)

    def predict(self, image_files: Files, output_file: str | Path | None = None) -> Labels:
        """The segmentation of ``nnUNetv2_predict``, to the voxel; of a smoothed model, that of most draws.

        Args:
            image_files: one file per channel.
            output_file: where to write it as well, with nnU-Net's file ending for this data set.

        Returns:
            label map with nnU-Net's axes (for NIfTI files: Z, Y, X).

        Raises:
            InputError: see :meth:`DeployedModel.preprocess`, or an output file that cannot be written.
        """
        if not isinstance(self.window, SmoothedModel):
            return self.deployed.predict(image_files, output_file)
        return self._exported(image_files, output_file, self._voted)

    def abstentions(
        self, image_files: Files, output_file: str | Path | None = None, alpha: float = 0.001
    ) -> npt.NDArray[np.bool_]:
        """Where the smoothed model abstains, as a map beside the one of :meth:`predict`.

        Args:
            image_files: one file per channel.
            output_file: where to write it as well, 1 where it abstains.
            alpha: see :meth:`decide`.

        Returns:
            with nnU-Net's axes: True where the draws cannot tell what most of infinitely many would say.

        Raises:
            InputError: see :meth:`decide` and :meth:`predict`.
        """
        self._smoothed()
        labels = self._exported(image_files, output_file, lambda image: self._as_labels(self.decide(image, alpha)))
        abstained: npt.NDArray[np.bool_] = labels > 0
        return abstained

    def _voted(self, image: Tensor) -> Tensor:
        self._smoothed().noise.check(image)
        with torch.no_grad():
            logits: Tensor = self(image)
        return logits

    def _as_labels(self, decided: Tensor) -> Tensor:
        """Logits that the host decodes as foreground where the model abstains, and as background elsewhere."""
        manager = self.deployed.label_manager
        abstains = decided == NO_CLASS
        if manager.has_regions:
            abstains = abstains.any(1)
        logits = torch.full((len(decided), manager.num_segmentation_heads, *abstains.shape[1:]), -1.0)
        logits[:, 0 if manager.has_regions else 1] = 2.0 * abstains.cpu() - 1
        if not manager.has_regions:
            logits[:, 0] = -2.0 * abstains.cpu() + 1
        return logits

    def _exported(
        self, image_files: Files, output_file: str | Path | None, logits_of: Callable[[Tensor], Tensor]
    ) -> Labels:
        """Preprocess, apply a function of ``(1, C, X, Y, Z)`` images, and go the host's way back to the file."""
        self.deployed.check_output(output_file)
        data, properties = self.deployed.preprocess(image_files)
        labels = self.deployed.segmentation(logits_of(data[None].to(self.deployed.device))[0], properties)
        self.deployed.write(labels, output_file, properties)
        return labels
