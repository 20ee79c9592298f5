"""Two small 2D networks for lesions in breast ultrasound (BUSI), one trained plainly and one on attacked images.

    python benchmarks/busi.py --data .../busi_224 --output busi_plain.pt
    python benchmarks/busi.py --data .../busi_224 --output busi_robust.pt --eps 4

The data are a folder with ``index.csv`` (image, mask, label, near_duplicate_group, fold) and 8 bit grey images. Fold 0
is held out; images are halved to 112 x 112 and lie in [0, 1]. The robust network sees, instead of each image, the one
that five steps of PGD within L-inf ``eps`` / 255 find.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from monai.networks.nets.unet import UNet
from PIL import Image
from torch import Tensor, nn

from monai_adv.attacks.pgd import PGD
from monai_adv.tasks import SegmentationTask
from monai_adv.threats import Threat

BOX = (0.0, 1.0)


def network() -> nn.Module:
    """Background and lesion; 0.4 million weights."""
    return UNet(2, 1, 2, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2, norm="instance")


def load(folder: Path, held_out: bool, fold: int = 0, count: int | None = None) -> tuple[Tensor, Tensor]:
    """``(B, 1, 112, 112)`` images and label maps of images with a lesion."""
    rows = [r for r in csv.DictReader((folder / "index.csv").open()) if r["mask"] and r["label"] != "normal"]
    rows = [r for r in rows if (int(r["fold"]) == fold) == held_out][:count]

    def read(name: str) -> Tensor:
        values = torch.from_numpy(np.array(Image.open(folder / name).convert("L"), np.float32))
        return F.avg_pool2d(values[None], 2)

    images = torch.stack([read(r["image"]) for r in rows]) / 255
    return images, (torch.stack([read(r["mask"]) for r in rows]) > 127).long()


def train(images: Tensor, labels: Tensor, epochs: int, eps: float, seed: int) -> nn.Module:
    """Dice and cross-entropy, Adam, a cosine schedule; ``eps`` 0 trains plainly."""
    torch.manual_seed(seed)
    model, batch = network(), 16
    task = SegmentationTask.for_evaluation()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    attack = PGD(Threat("linf", eps, BOX), steps=5, relative_step=0.4)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(images)).split(batch):
            x, y = images[chosen], labels[chosen]
            flip = torch.rand(()) < 0.5
            x, y = (x.flip(-1), y.flip(-1)) if flip else (x, y)
            if eps:
                x = attack(model, x, y, task).images
            logits = model.train()(x)
            loss = task.sample_loss(logits, y).mean() + F.cross_entropy(logits, y[:, 0])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(chosen)
        schedule.step()
        print(f"epoch {epoch + 1}: loss {total / len(images):.3f}", flush=True)
    return model.eval()


def main() -> None:
    """Train one network and say how it does on the held-out fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="file of the weights")
    parser.add_argument("--eps", type=float, default=0.0, help="L-inf radius in 255ths")
    parser.add_argument("--epochs", type=int, default=12)
    arguments = parser.parse_args()
    model = train(*load(arguments.data, held_out=False), arguments.epochs, arguments.eps / 255, seed=0)
    torch.save(model.state_dict(), arguments.output)
    images, labels = load(arguments.data, held_out=True)
    with torch.no_grad():
        dice = SegmentationTask.for_evaluation().dice(model(images), labels)
    print(f"held out: Dice {100 * float(dice.nanmean()):.1f} %, {len(images)} images")


if __name__ == "__main__":
    main()
