"""BUSI as it is published -> the folder that this bundle reads.

    python scripts/prepare_busi.py Dataset_BUSI_with_GT busi_224

Grey images, zero-padded to a square and resized; the masks of one image merged. BUSI has many images twice or nearly
so. Those whose thumbnails correlate by more than 0.93 become a group, and a group stays in one of the five folds:
otherwise test images are seen in training. The threshold errs on the side of large groups.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.sparse.csgraph import connected_components

from monai_adv.bundles.image_index import write_table
from monai_adv.errors import InputError
from monai_adv.files import whole_folder

LABELS = ("benign", "malignant", "normal")
FOLDS = 5
THUMBNAIL = 32
ALIKE = 0.93


def prepare(source: Path, target: Path, size: int = 224, seed: int = 0) -> None:
    """Write images, masks and index.csv.

    Args:
        source: folder with the folders benign, malignant and normal, in them ``benign (1).png``,
            ``benign (1)_mask.png``, ``benign (1)_mask_1.png``.
        target: new folder.
        size: of the squares, in pixels.
        seed: of the folds.

    Raises:
        InputError: a source of another layout, or a target that exists.
    """
    if target.exists():
        raise InputError.of("target", str(target), "a new folder")
    files = {label: sorted(f for f in source.glob(f"{label}/*.png") if "_mask" not in f.name) for label in LABELS}
    for label, found in files.items():
        if not found:
            todo = "unpack the published archive; https://scholar.cu.edu.eg/?q=afahmy/pages/dataset"
            raise InputError.of("source", str(source), f"a folder with {label}/{label} (1).png and so on", todo)
    with whole_folder(target) as unfinished:
        rows: list[dict[str, str | int]] = []
        thumbnails = []
        for label, found in files.items():
            for file in found:
                image = squared(Image.open(file).convert("L"), size, Image.Resampling.BILINEAR)
                mask_files = sorted(file.parent.glob(f"{file.stem}_mask*.png"))
                masks = [np.asarray(Image.open(mask_file).convert("L")) for mask_file in mask_files]
                mask = Image.fromarray(np.max(masks, axis=0)) if masks else Image.new("L", (size, size))
                name = f"{label}/{label}_{int(re.findall(r'[0-9]+', file.stem)[-1]):03d}.png"
                for folder, picture in (("images", image), ("masks", squared(mask, size, Image.Resampling.NEAREST))):
                    (unfinished / folder / label).mkdir(parents=True, exist_ok=True)
                    picture.save(unfinished / folder / name)
                rows.append({"image": f"images/{name}", "mask": f"masks/{name}", "label": label})
                thumbnails.append(np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), float).ravel())
        _, groups = connected_components(np.corrcoef(thumbnails) > ALIKE)
        folds = folds_of([int(group) for group in groups], [str(row["label"]) for row in rows], seed)
        for row, group in zip(rows, groups, strict=True):
            row |= {"near_duplicate_group": int(group), "fold": folds[int(group)]}
        write_table(unfinished, rows)


def squared(image: Image.Image, size: int, resampling: Image.Resampling) -> Image.Image:
    """Zero-padded to a square around the middle, and resized."""
    side = max(image.size)
    square = Image.new("L", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), resampling)


def folds_of(groups: list[int], labels: list[str], seed: int) -> dict[int, int]:
    """A fold for each group: the one that has the fewest images of the group's most frequent label so far."""
    members: dict[int, list[str]] = defaultdict(list)
    for group, label in zip(groups, labels, strict=True):
        members[group].append(label)
    order = sorted(members)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -len(members[group]))
    counts = [Counter[str]() for _ in range(FOLDS)]
    folds = {}
    for group in order:
        label = Counter(members[group]).most_common(1)[0][0]
        folds[group] = min(range(FOLDS), key=lambda fold: counts[fold][label])
        counts[folds[group]].update(members[group])
    return folds


def main() -> int:
    """The command; 2 for input that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="the published folder")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--size", type=int, default=224, help="of the squares, in pixels (default: 224)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds (default: 0)")
    args = parser.parse_args()
    try:
        prepare(args.source, args.target, args.size, args.seed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
