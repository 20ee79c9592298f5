"""nnU-Net's own preprocessing and export around :class:`NNUNetModel`, as transforms for MONAI's data sets and engines.

In a bundle::

    "cases": {"_target_": "nnunet_trainers.monai_cases.NNUNetCases", "network": "@network", "output_dir": "@output_dir"}
    "dataset": {"_target_": "Dataset", "data": "@data", "transform": "$@cases.preprocess"}
    "postprocessing": "$@cases.export"
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor

from monai_adv.errors import InputError
from nnunet_trainers.monai_network import NNUNetModel

Item = Mapping[str, Any]


class NNUNetCases:
    """From image files to network space, and from logits to a label map in the original geometry.

    Both are the host's own code, so that the segmentation is that of ``nnUNetv2_predict``, but for voxels where its
    half precision decides.

    Args:
        network: what preprocessing and export belong to.
        output_dir: where :meth:`export` writes; None: for data that are only measured.

    Raises:
        InputError: another network.
    """

    def __init__(self, network: NNUNetModel, output_dir: str | Path | None = None) -> None:
        if not isinstance(network, NNUNetModel):
            raise InputError.of("network", type(network).__name__, "an NNUNetModel")
        self.deployed = network.deployed
        self.output_dir = None if output_dir is None else Path(output_dir)
        self._properties: dict[str, dict[str, Any]] = {}

    def preprocess(self, item: Item) -> dict[str, Any]:
        """An item of a data list, loaded.

        Args:
            item: ``image``: a file, or a list of one per channel; ``label``: a file, where there is one.

        Returns:
            the item with ``image`` ``(C, X, Y, Z)`` in network space, a MetaTensor with the first file's name and the
            network space's spacing, and ``label`` ``(1, X, Y, Z)``.

        Raises:
            InputError: see :meth:`DeployedModel.preprocess`.
        """
        files = item["image"] if isinstance(item["image"], list | tuple) else [item["image"]]
        loaded = dict(item)
        if "label" in item:
            image, loaded["label"], properties = self.deployed.preprocess_labelled(files, item["label"])
            del properties["truth"]  # large, and not needed on the way back
        else:
            image, properties = self.deployed.preprocess(files)
        if self.output_dir is not None:
            self._properties[str(files[0])] = properties
        spacing = torch.diag(torch.tensor([*self._spacing(properties), 1.0], dtype=torch.float64))
        loaded["image"] = MetaTensor(image, affine=spacing, meta={"filename_or_obj": str(files[0])})
        return loaded

    def export(self, item: Item) -> dict[str, Any]:
        """An item after the network; its label map is written as ``CASE_seg`` into the output folder.

        Args:
            item: ``image`` as :meth:`preprocess` made it, in this process; ``pred``: ``(K, X, Y, Z)`` logits.

        Returns:
            the item with ``pred`` ``(1, ...)``: the label map with the host's axes (for NIfTI files: Z, Y, X).

        Raises:
            InputError: no output folder, or an image that did not come from here.
        """
        file = str(item["image"].meta["filename_or_obj"])
        if self.output_dir is None or file not in self._properties:
            found = "no output_dir" if self.output_dir is None else f"{file}, preprocessed elsewhere"
            raise InputError.of("item", found, "one from preprocess of the same object", "set num_workers to 0")
        properties = self._properties.pop(file)
        labels = self.deployed.segmentation(torch.as_tensor(item["pred"]), properties)
        ending = self.deployed.dataset_json["file_ending"]
        self.output_dir.mkdir(parents=True, exist_ok=True)
        case = Path(file).name.removesuffix(ending)
        writer = self.deployed.plans_manager.image_reader_writer_class()
        writer.write_seg(labels, str(self.output_dir / f"{case}_seg{ending}"), properties)
        return {**item, "pred": torch.from_numpy(np.ascontiguousarray(labels))[None]}

    def _spacing(self, properties: Mapping[str, Any]) -> list[float]:
        """Of network space in mm; a 2D plan leaves the distance of the slices as it is."""
        original = [float(properties["spacing"][axis]) for axis in self.deployed.plans_manager.transpose_forward]
        planned = [float(value) for value in self.deployed.configuration_manager.spacing]
        return [*original[: 3 - len(planned)], *planned]
