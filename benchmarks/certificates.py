"""Certified accuracy and Dice of smoothed models, trained plainly and with noise, beside an attack on the same model.

    python benchmarks/certificates.py classify ../shared/data        # goes on where it stopped
    python benchmarks/certificates.py segment MODEL_FOLDER IMAGES LABELS --sigma 0.12 0.25 --cases 4
    python benchmarks/certificates.py table                                      # Markdown

Classification: the small network and optimiser of benchmarks/classification.py, the first 100 images of a shuffled test
set, n0 100, n 1000, alpha 0.001. "Attacked" is PGD with 20 steps along the gradient of the mean probability of 50
draws, on the first 30 of them, at the radius in its head: an upper bound of the accuracy of the smoothed model, where
the certificate is a lower one. Radii beyond what n draws can show are not attacked. SARS-CoV-2 CT slices are averaged
over 4 x 4 pixels, to 56 x 56.
Segmentation: whole volumes of an nnU-Net through its own sliding window, n0 20, n 100, tau 0.75, alpha 0.001.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from classification import EPOCHS, load, read, small_network, train
from PIL import Image
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from monai_adv.attacks import PGD
from monai_adv.certificates import Certification, SmoothedModel, certify_classes
from monai_adv.certificates.bounds import lower_bound
from monai_adv.certificates.bounds import radius as radius_of
from monai_adv.defenses import METHODS
from monai_adv.evaluation.certify.run import certify_models
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Threat
from nnunet_trainers.evaluation.arguments import source_at

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "certificates.json"
SIGMAS = (0.25, 0.12, 0.5)
RADII = (0.0, 0.1, 0.25, 0.5, 1.0)
METHODS_OF = ("standard", "gaussian")
IMAGES, ATTACKED = 100, 30
COVID, POOLED = "sars_cov2_ct", 4
LENGTHS = {**EPOCHS, COVID: 15}
"""Epochs."""
SEED = 0


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    classify = commands.add_parser("classify")
    classify.add_argument("data", type=Path, help="folder of the npz files")
    classify.set_defaults(run=all_classifiers)
    segment = commands.add_parser("segment")
    segment.add_argument("model", type=Path, help="folder of a trained nnU-Net")
    segment.add_argument("images", type=Path)
    segment.add_argument("labels", type=Path)
    segment.add_argument("--sigma", nargs="+", type=float, default=SIGMAS)
    segment.add_argument("--cases", type=int, default=4)
    segment.add_argument("--name", help="of the model in the table; default: its folder's")
    segment.set_defaults(run=one_nnunet)
    commands.add_parser("table").set_defaults(run=print_table)
    arguments = parser.parse_args()
    arguments.run(arguments)


def all_classifiers(arguments: argparse.Namespace) -> None:
    """Train and certify whatever is not in the results yet."""
    rows = read(RESULTS)
    wanted = [(s, m, sigma) for sigma in SIGMAS for s in LENGTHS for m in METHODS_OF]
    done = {(r["set"], r["method"], r["sigma"]) for r in rows}
    for name, method, sigma in tqdm([w for w in wanted if w not in done]):
        rows.append(one_classifier(arguments.data, name, method, sigma))
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def one_classifier(folder: Path, name: str, method: str, sigma: float) -> dict[str, Any]:
    """Train with this noise (or without), certify with it, attack the smoothed model."""
    torch.manual_seed(SEED)
    images, labels = images_of(folder, name, "train")
    network, of = small_network(images.shape[-1]), METHODS[method]
    settings = of.settings(**({"sigma": sigma} if method == "gaussian" else {}), seed=SEED)
    train(network, of.defense(ClassificationTask(), settings), images, labels, LENGTHS[name])
    network.eval()
    images, labels = (values[:IMAGES] for values in images_of(folder, name, "test"))
    start = time.perf_counter()
    drawn = Certification(sigma, seed=SEED, inputs_per_pass=4000)
    certified = certify_classes(network, images, drawn)
    seconds = time.perf_counter() - start
    model = SmoothedModel(network, sigma, draws=50, seed=SEED + 1, inputs_per_pass=2000).eval()
    task, few = ClassificationTask(), slice(ATTACKED)
    attacked = {}
    most = float(radius_of(lower_bound(np.array(drawn.n), drawn.n, drawn.alpha), sigma))
    for radius in [r for r in RADII[1:] if r <= most]:
        pgd = PGD(Threat("l2", radius, unit="norm"), steps=20, until="wrong")
        attacked[f"{radius:g}"] = 100 * float((~pgd(model, images[few], labels[few], task).wrong).float().mean())
    with torch.no_grad():
        plain = 100 * float(task.correct(network(images), labels).float().mean())
    return {
        "set": name, "method": method, "sigma": sigma, "plain": plain,
        "certified": {f"{r:g}": 100 * float(certified.holds(labels, r).double().mean()) for r in RADII},
        "certified_first": {f"{r:g}": 100 * float(certified.holds(labels, r)[few].double().mean()) for r in RADII},
        "attacked": attacked, "abstained": 100 * float((certified.label < 0).double().mean()),
        "images": len(images), "seconds": seconds, **where(),
    }  # fmt: skip


def images_of(folder: Path, name: str, part: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, H, W)`` in [0, 1] and labels ``(N,)``, the test set in a fixed random order."""
    if name != COVID:
        return load(folder / "medmnist_28" / f"{name}.npz", part)
    place = folder / "sars_cov2_ct_224"
    index = pandas.read_csv(place / "index.csv")
    index = index[index["split"] == part].sample(frac=1, random_state=SEED)
    slices = np.stack([np.asarray(Image.open(place / file)) for file in index["image"]])
    images = torch.from_numpy(slices)[:, None].float() / 255
    return functional.avg_pool2d(images, POOLED), torch.tensor(index["covid"].to_numpy()).long()


def one_nnunet(arguments: argparse.Namespace) -> None:
    """Certify the first cases of a trained nnU-Net for each sigma."""
    rows = read(RESULTS)
    name = arguments.name or arguments.model.resolve().name
    for sigma in arguments.sigma:
        if any((r["set"], r["sigma"]) == (name, sigma) for r in rows):
            continue
        source = source_at(
            arguments.model, arguments.images, arguments.labels, device="cpu", box=None, name=name, options={}
        )
        assert source is not None
        settings = Certification(sigma, n0=20, n=100, tau=0.75, seed=SEED, inputs_per_pass=64)
        found = certify_models([source], settings, cases=arguments.cases, bars=True)
        rows.append({
            "set": name, "method": "segmentation", "sigma": sigma, "repr": repr(found),
            "cases": [case.as_dict() for case in found.cases], **where(),
        })  # fmt: skip
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def where() -> dict[str, Any]:
    """Date, versions, threads."""
    return {
        "date": str(date.today()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "seed": SEED,
    }


def print_table(_: argparse.Namespace) -> None:
    """Two Markdown tables."""
    rows = read(RESULTS)
    heads = [f"certified at {r:g}" for r in RADII] + [f"attacked at {r:g}" for r in RADII[1:]]
    print("| data | training | sigma | without noise | " + " | ".join(heads) + " | abstains |")
    print("|---|---|---:|" + "---:|" * (len(heads) + 2))
    for r in rows:
        if r["method"] != "segmentation":
            cells = [*r["certified"].values(), *r["attacked"].values(), r["abstained"]]
            cells = " | ".join(f"{value:.1f}" for value in cells)
            print(f"| {r['set']} | {r['method']} | {r['sigma']:g} | {r['plain']:.1f} | {cells} |")
    print("\n| model | sigma | radius L2 | RMS | smoothed Dice | certified Dice | abstains % | cases | s per case |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        if r["method"] == "segmentation":
            cases, count = r["cases"], len(r["cases"])
            mean = {k: sum(c[k] for c in cases) / count for k in ("clean", "score", "abstained", "seconds")}
            rms = sum(c["radius"] / math.sqrt(c["voxels"]) for c in cases) / count
            print(
                f"| {r['set']} | {r['sigma']:g} | {cases[0]['radius']:.3g} | {rms:.2g} | {100 * mean['clean']:.1f} | "
                f"{100 * mean['score']:.1f} | {100 * mean['abstained']:.1f} | {count} | {mean['seconds']:.0f} |"
            )


if __name__ == "__main__":
    main()
