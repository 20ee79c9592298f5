"""Certified accuracy and Dice of smoothed models, trained plainly and with noise, beside an attack on the same model.

    python benchmarks/certificates.py classify ../shared/data        # goes on where it stopped
    python benchmarks/certificates.py segment NAME BUNDLE --weights models/gaussian.pt --data DATASET --sigma 0.25
    python benchmarks/certificates.py segment NAME MODEL_FOLDER --images IMAGES --labels LABELS --sigma 0.25
    python benchmarks/certificates.py table                                      # Markdown

Classification: the small network and optimiser of benchmarks/classification.py, the first 100 images of a shuffled test
set, n0 100, n 1000, alpha 0.001. "Attacked" is PGD with 20 steps along the gradient of the mean probability of 50
draws, on the first 30 of them, at the radius in its head: an upper bound of the accuracy of the smoothed model, where
the certificate is a lower one. Radii beyond what n draws can show are not attacked. "Without noise, norm anew": the
network itself, its BatchNorm statistics taken anew from the training images without noise. SARS-CoV-2 CT slices are
averaged over 8 x 8 pixels, to 28 x 28, and half as many.
Segmentation: whole volumes through the host's own sliding window, n0 10, n 100, tau 0.75, alpha 0.001; PGD with 10
steps along the gradient of 10 draws, judged by 100 others, all in the grid of the network's input.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from copy import deepcopy
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import torch
from classification import BATCH, EPOCHS, load, read, small_network, train
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from monai_adv.attacks import PGD
from monai_adv.certificates import Certification, SmoothedModel, Smoothing, certify_classes
from monai_adv.certificates.bounds import lower_bound
from monai_adv.certificates.bounds import radius as radius_of
from monai_adv.defenses import METHODS
from monai_adv.evaluation.certify.cases import certify_case, voted_scores
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.smoothed import SmoothedVersion
from monai_adv.evaluation.records import Level
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Threat
from nnunet_trainers.evaluation.arguments import source_at

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "certificates.json"
SIGMAS = (0.25, 0.12, 0.5)
RADII = (0.0, 0.1, 0.25, 0.5, 1.0)
HALF = "gaussian, half clean"
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "standard": ("standard", {}),
    "gaussian": ("gaussian", {}),
    HALF: ("gaussian", {"clean_share": 0.5}),
}
"""Method and settings; half of the images clean is measured at the first sigma alone."""
IMAGES, ATTACKED = 100, 30
STEPS = 10
PASS = 256
"""Images of 28 x 28 in one pass: of more the CPU's caches hold too little."""
COVID, POOLED = "sars_cov2_ct", 8
SHARE = {COVID: 2}
"""Images of it are fewer by this factor."""
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
    volumes = commands.add_parser("segment")
    volumes.add_argument("name", help="in the table")
    volumes.add_argument("model", type=Path, help="folder of a bundle, or of a trained nnU-Net")
    volumes.add_argument("--weights", default="models/model.pt", help="of a bundle")
    volumes.add_argument("--data", type=Path, help="of a bundle: its dataset_dir")
    volumes.add_argument("--images", type=Path, help="of an nnU-Net")
    volumes.add_argument("--labels", type=Path, help="of an nnU-Net")
    volumes.add_argument("--cases", type=int, default=2)
    volumes.set_defaults(run=segment)
    table = commands.add_parser("table")
    table.set_defaults(run=print_table)
    for each in (classify, volumes, table):
        each.add_argument("--results", type=Path, default=RESULTS)
    for each in (classify, volumes):
        each.add_argument("--sigma", nargs="+", type=float, default=SIGMAS)
    arguments = parser.parse_args()
    arguments.run(arguments)


def all_classifiers(arguments: argparse.Namespace) -> None:
    """Train and certify whatever is not in the results yet."""
    rows = read(arguments.results)
    wanted = [
        (name, training, sigma)
        for sigma in arguments.sigma for name in LENGTHS for training in TRAININGS
        if training != HALF or sigma == SIGMAS[0]
    ]  # fmt: skip
    done = {(r["set"], r["method"], r["sigma"]) for r in rows}
    for name, method, sigma in tqdm([w for w in wanted if w not in done]):
        rows.append(one_classifier(arguments.data, name, method, sigma))
        arguments.results.write_text(json.dumps(rows, indent=1) + "\n")


def one_classifier(folder: Path, name: str, training: str, sigma: float) -> dict[str, Any]:
    """Train with this noise (or without), certify with it, attack the smoothed model."""
    torch.manual_seed(SEED)
    images, labels = images_of(folder, name, "train")
    method, more = TRAININGS[training]
    network, of = small_network(images.shape[-1]), METHODS[method]
    settings = of.settings(**({"sigma": sigma} if method == "gaussian" else {}), **more, seed=SEED)
    train(network, of.defense(ClassificationTask(), settings), images, labels, LENGTHS[name])
    network.eval()
    clean_norm = with_norm_of(network, images)
    count, attacked_count = IMAGES // SHARE.get(name, 1), ATTACKED // SHARE.get(name, 1)
    images, labels = (values[:count] for values in images_of(folder, name, "test"))
    start = time.perf_counter()
    drawn = Certification(sigma, seed=SEED, inputs_per_pass=PASS)
    certified = certify_classes(network, images, drawn)
    seconds = time.perf_counter() - start
    model = SmoothedModel(network, sigma, draws=50, seed=SEED + 1, inputs_per_pass=PASS).eval()
    task, few = ClassificationTask(), slice(attacked_count)
    attacked = {}
    most = float(radius_of(lower_bound(np.array(drawn.n), drawn.n, drawn.alpha), sigma))
    for radius in [r for r in RADII[1:] if r <= most]:
        pgd = PGD(Threat("l2", radius, unit="norm"), steps=20, until="wrong")
        attacked[f"{radius:g}"] = 100 * float((~pgd(model, images[few], labels[few], task).wrong).float().mean())
    with torch.no_grad():
        plain, renormed = (
            100 * float(task.correct(of_images(images), labels).double().mean()) for of_images in (network, clean_norm)
        )
    return {
        "set": name, "method": training, "sigma": sigma, "plain": plain, "plain_norm_of_clean": renormed,
        "certified": {f"{r:g}": 100 * float(certified.holds(labels, r).double().mean()) for r in RADII},
        "certified_first": {f"{r:g}": 100 * float(certified.holds(labels, r)[few].double().mean()) for r in RADII},
        "attacked": attacked, "abstained": 100 * float((certified.label < 0).double().mean()),
        "images": len(images), "seconds": seconds, **where(),
    }  # fmt: skip


def with_norm_of(network: nn.Module, images: Tensor) -> nn.Module:
    """The same weights with BatchNorm statistics of these images."""
    other = deepcopy(network).train()
    for layer in other.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
    with torch.no_grad():
        for part in images.split(BATCH):
            other(part)
    return other.eval()


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


def segment(arguments: argparse.Namespace) -> None:
    """Certify and attack the first cases of a bundle or of a trained nnU-Net, smoothed with each sigma."""
    rows = read(arguments.results)
    for sigma in arguments.sigma:
        if any((r["set"], r["sigma"]) == (arguments.name, sigma) for r in rows):
            continue
        if arguments.images is None:
            overrides = (f"dataset_dir={arguments.data}",)
            opened = BundleSource(str(arguments.model), weights=arguments.weights, overrides=overrides).open()
        else:
            folders = str(arguments.images), str(arguments.labels)
            source = source_at(arguments.model, *folders, device="cpu", box=None, name=arguments.name, options={})
            assert source is not None
            opened = source.open()
        model = SmoothedVersion(opened, Smoothing(sigma, n0=10, n=100, seed=SEED, inputs_per_pass=16, draws=10))
        cases = [one_case(model, name) for name in tqdm(model.cases[: arguments.cases])]
        rows.append({"set": arguments.name, "method": "segmentation", "sigma": sigma, "cases": cases, **where()})
        arguments.results.write_text(json.dumps(rows, indent=1) + "\n")


def one_case(model: SmoothedVersion, name: str) -> dict[str, Any]:
    """What is proven about a case, and what PGD leaves at that radius and far beyond it, at RMS 0.05."""
    case, start = model.load(name), time.perf_counter()
    [certified] = certify_case(model, case, model.settings, case.network.network)
    middle = time.perf_counter()
    attacked = {}
    for key, level in {
        "certified": Level("l2", certified.radius, "norm"),
        "rms 0.05": Level("l2", 0.05, "rms"),
    }.items():
        pgd = PGD(case.threat(level), steps=STEPS, until="lowest")
        worst = pgd(case.network, case.images, case.target, case.task).images
        fresh = replace(model.settings, seed=SEED + 1)
        attacked[key] = voted_scores(model, case, worst, fresh, case.network.network)[0][name]
    return {
        **asdict(certified),
        "attacked": attacked,
        "seconds": middle - start,
        "attack": time.perf_counter() - middle,
    }


def where() -> dict[str, Any]:
    """Date, versions, threads."""
    return {
        "date": str(date.today()),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "seed": SEED,
    }


def print_table(arguments: argparse.Namespace) -> None:
    """Two Markdown tables."""
    rows = read(arguments.results)
    heads = ["sigma", "images", "without noise", "norm anew", *(f"certified at {r:g}" for r in RADII), "abstains"]
    heads += [f"first: certified, attacked at {r:g}" for r in RADII[1:]]
    print("| data | training | " + " | ".join(heads) + " |\n|---|---|" + "---:|" * len(heads))
    for r in rows:
        if r["method"] != "segmentation":
            shown = r["plain"], r.get("plain_norm_of_clean"), *r["certified"].values(), r["abstained"]
            cells = ["–" if value is None else f"{value:.1f}" for value in shown]
            both = [(r["certified_first"][f"{at:g}"], r["attacked"].get(f"{at:g}")) for at in RADII[1:]]
            cells += ["–" if most is None else f"{least:.1f}, {most:.1f}" for least, most in both]
            print(f"| {r['set']} | {r['method']} | {r['sigma']:g} | {r['images']} | " + " | ".join(cells) + " |")
    heads = "radius L2 | RMS | unchanged | certified | attacked there | at RMS 0.05 | abstains % | cases"
    print(f"\n| model | sigma | {heads} |\n|---|" + "---:|" * 9)
    for r in rows:
        if r["method"] == "segmentation":
            cases, count = r["cases"], len(r["cases"])
            mean = {k: 100 * sum(c[k] for c in cases) / count for k in ("clean", "score", "abstained")}
            left = [100 * sum(c["attacked"][k] for c in cases) / count for k in ("certified", "rms 0.05")]
            rms = sum(c["radius"] / math.sqrt(c["voxels"]) for c in cases) / count
            shown = mean["clean"], mean["score"], *left, mean["abstained"]
            cells = " | ".join(f"{value:.1f}" for value in shown)
            print(f"| {r['set']} | {r['sigma']:g} | {cases[0]['radius']:.3g} | {rms:.2g} | {cells} | {count} |")


if __name__ == "__main__":
    main()
