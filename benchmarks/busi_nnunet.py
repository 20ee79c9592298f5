"""Lesions in breast ultrasound (BUSI) as an nnU-Net 2D data set of PNG files: a second anatomy for benchmarks/price.py.

    python benchmarks/busi_nnunet.py raw --data .../busi_224                  # into nnUNet_raw/Dataset005_BUSI
    nnUNetv2_plan_and_preprocess -d 5 -c 2d
    python benchmarks/busi_nnunet.py plans --data .../busi_224                # CPU-sized plans, the table's split

Data as in benchmarks/busi.py: grey, halved to 112 x 112, images with a lesion; fold 0 of the table is validation.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np
from PIL import Image

from nnunet_trainers.short_training import smaller_plans

DATASET = "Dataset005_BUSI"


def rows(data: Path) -> list[dict[str, str]]:
    """Of the images with a lesion."""
    return [r for r in csv.DictReader((data / "index.csv").open()) if r["mask"] and r["label"] != "normal"]


def name(row: dict[str, str]) -> str:
    """Of a case: nnU-Net takes no blanks."""
    return Path(row["image"]).stem.replace(" ", "_").replace("(", "").replace(")", "")


def raw(data: Path) -> None:
    """Images, label maps of 0 and 1, dataset.json."""
    folder = Path(os.environ["nnUNet_raw"]) / DATASET
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    for row in rows(data):
        image = Image.open(data / row["image"]).convert("L").resize((112, 112), Image.Resampling.BOX)
        image.save(folder / "imagesTr" / f"{name(row)}_0000.png")
        mask = Image.open(data / row["mask"]).convert("L").resize((112, 112), Image.Resampling.BOX)
        label = (np.array(mask) > 127).astype(np.uint8)
        Image.fromarray(label).save(folder / "labelsTr" / f"{name(row)}.png")
    about = {"channel_names": {"0": "ultrasound"}, "labels": {"background": 0, "lesion": 1}, "file_ending": ".png",
             "numTraining": len(rows(data))}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")


def plans(data: Path) -> None:
    """Plans of batch 8 with features 8-16-32-64, and the split."""
    folder = Path(os.environ["nnUNet_preprocessed"]) / DATASET
    whole = json.loads((folder / "nnUNetPlans.json").read_text())
    smaller = smaller_plans(whole, "nnUNetPlansCPU", {"2d": 8}, (8, 16, 32, 64))
    (folder / "nnUNetPlansCPU.json").write_text(json.dumps(smaller, indent=1) + "\n")
    split = {"train": [name(r) for r in rows(data) if r["fold"] != "0"],
             "val": [name(r) for r in rows(data) if r["fold"] == "0"]}  # fmt: skip
    (folder / "splits_final.json").write_text(json.dumps([split], indent=1) + "\n")


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("raw", "plans"))
    parser.add_argument("--data", type=Path, required=True)
    arguments = parser.parse_args()
    {"raw": raw, "plans": plans}[arguments.command](arguments.data)


if __name__ == "__main__":
    main()
