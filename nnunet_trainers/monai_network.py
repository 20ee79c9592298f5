"""A trained nnU-Net as a network for MONAI.

``monai.apps.nnunet.ModelnnUNetWrapper`` fails for every trainer on nnunetv2 2.7 or newer, because it calls the older
signature, and never finds trainers outside nnunetv2. This one leaves loading and prediction to the host's own code. In
a bundle::

    "network_def": {"_target_": "nnunet_trainers.NNUNetModel", "model_folder": "$@bundle_root + '/models'"}
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

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

    Attributes:
        deployed: the model as :class:`DeployedModel`.

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
    ) -> None:
        super().__init__()
        self.deployed = DeployedModel.from_folder(model_folder, fold, checkpoint, device, mirroring, trusted=trusted)
        self.window = self.deployed.as_network(patches_per_pass)
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
        if self.deployed.is_2d and values.ndim == 5:
            slices = self.window(values.transpose(1, 2).flatten(0, 1))
            logits: Tensor = slices.unflatten(0, (len(values), values.shape[2])).transpose(1, 2)
        else:
            logits = self.window(values)
        return MetaTensor(logits, meta=image.meta) if isinstance(image, MetaTensor) else logits

    def preprocess(self, image_files: Files) -> Tensor:
        """``(1, C, X, Y, Z)`` image in network space, on the model's device; one file per channel."""
        return self.deployed.preprocess(image_files)[0][None].to(self.deployed.device)

    def predict(self, image_files: Files, output_file: str | Path | None = None) -> Labels:
        """The segmentation of ``nnUNetv2_predict``, to the voxel.

        Args:
            image_files: one file per channel.
            output_file: where to write it as well, with nnU-Net's file ending for this data set.

        Returns:
            label map with nnU-Net's axes (for NIfTI files: Z, Y, X).

        Raises:
            InputError: see :meth:`DeployedModel.preprocess`, or an output file that cannot be written.
        """
        return self.deployed.predict(image_files, output_file)
