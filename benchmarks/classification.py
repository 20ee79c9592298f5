"""Every defence on PneumoniaMNIST and BreastMNIST: clean, FGSM, PGD, AutoAttack, white noise, cost.

    python benchmarks/classification.py run ../shared/data/medmnist_28 --workers 2      # goes on where it stopped
    python benchmarks/classification.py table                                          # Markdown

The same small network, optimiser and number of epochs for all; the hyper-parameters are the defaults of each method,
with one threat and one number of attack steps. Epochs at which a method changes something are shares of the training,
as in the papers. Nothing is tuned, and the last weights are taken, not the best ones. Attacks see the test set;
AutoAttack, which takes thousands of queries per image, sees its first images. Samples that are wrong without an attack
count as wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spread import spread
from torch import Tensor, nn
from tqdm import tqdm

from monai_adv.attacks import FGSM, PGD, AutoAttack, WhiteNoise
from monai_adv.defenses import METHODS, Batch, Defense
from monai_adv.defenses.free_at import FreeATSettings
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Threat

RESULTS = Path(__file__).parents[1] / "docs" / "results" / "classification.json"
EPOCHS = {"breastmnist": 30, "pneumoniamnist": 4}  # about as many updates
EPS = 4 / 255
STEPS = 7
BATCH = 64
RATE = 1e-3
AUTOATTACK_IMAGES = {"breastmnist": 100, "pneumoniamnist": 50}

COMMON = {"norm": "linf", "eps": EPS, "steps": STEPS, "box": (0.0, 1.0)}


OWN: dict[str, dict[str, Any]] = {"cat": {"patience": 2}, "fat": {"tau_epochs": "0.42,0.75"}}
"""Settings that count epochs, at the same shares of the training as in the papers, where that is not the default."""


def length(name: str, method: str) -> int:
    """Epochs of a training; Free-AT replays every batch, and is meant to train that many times fewer."""
    return math.ceil(EPOCHS[name] / FreeATSettings().replays) if method == "freeat" else EPOCHS[name]


def main() -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("data", type=Path, help="folder of the npz files")
    run.add_argument("--sets", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    run.add_argument(
        "--methods", nargs="+", default=[k for k, m in METHODS.items() if "classification" not in m.not_for]
    )
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--results", type=Path, default=RESULTS)
    run.set_defaults(run=measure_all)
    table = commands.add_parser("table")
    table.add_argument("--results", type=Path, default=RESULTS)
    table.set_defaults(run=print_table)
    arguments = parser.parse_args()
    arguments.run(arguments)


def measure_all(arguments: argparse.Namespace) -> None:
    """Train and attack whatever is not in the results yet; every result is written as soon as it is there."""
    rows = read(arguments.results)
    done = {(r["set"], r["method"], r["seed"]) for r in rows}
    wanted = [(s, m, seed) for seed in arguments.seeds for s in arguments.sets for m in arguments.methods]
    with ProcessPoolExecutor(arguments.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = {pool.submit(measure, arguments.data, *w): w for w in wanted if w not in done}
        for run in tqdm(as_completed(runs), total=len(runs)):
            rows.append(run.result())
            arguments.results.write_text(json.dumps(rows, indent=1) + "\n")


def measure(folder: Path, name: str, method: str, seed: int) -> dict[str, Any]:
    """One training and its evaluation, as a row of the results."""
    images, labels = load(folder / f"{name}.npz", "train")
    torch.manual_seed(seed)
    network = METHODS[method].defense.prepare(small_network())
    names = {f.name for f in dataclasses.fields(METHODS[method].settings)}
    epochs = length(name, method)
    given = {k: v for k, v in {**COMMON, **OWN.get(method, {}), "seed": seed}.items() if k in names}
    defense = METHODS[method].defense(ClassificationTask(), METHODS[method].settings(**given))
    begin = time.perf_counter()
    figures = train(network, defense, images, labels, epochs)
    seconds = time.perf_counter() - begin
    return {
        "set": name,
        "method": method,
        "seed": seed,
        "settings": given,
        "epochs": epochs,
        "seconds_per_epoch": seconds / epochs,
        "passes_per_sample": figures["passes_per_sample"],
        **evaluate(network, *load(folder / f"{name}.npz", "test"), AUTOATTACK_IMAGES[name]),
        "date": str(date.today()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def small_network(size: int = 28) -> nn.Module:
    """Three convolutions with BatchNorm, of images of ``size`` pixels a side 26 thousand weights."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

    hidden = nn.Linear(32 * (size // 8) ** 2, 64)
    return nn.Sequential(*block(1, 8), *block(8, 16), *block(16, 32), nn.Flatten(), hidden, nn.ReLU(), nn.Linear(64, 2))


def train(network: nn.Module, defense: Defense, images: Tensor, labels: Tensor, epochs: int) -> dict[str, float]:
    """The loop of one's own of docs/monai.md."""
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    defense.attach(network, optimizer)
    defense.bind(SampleIds({"train": len(images)}), "cpu")
    figures: dict[str, float] = {}
    for epoch in range(epochs):
        network.train()
        defense.on_epoch_start(epoch, epochs)
        for ids in torch.randperm(len(images)).split(BATCH):
            updated = False
            optimizer.zero_grad()
            for part in defense.losses(network, Batch(images[ids], labels[ids], ids)):
                part.loss.backward()
                updated = part.update
                if updated:
                    optimizer.step()
                    optimizer.zero_grad()
            if not updated:
                optimizer.step()
        figures = defense.on_epoch_end()
    return figures


def evaluate(network: nn.Module, images: Tensor, labels: Tensor, first: int) -> dict[str, float]:
    """Accuracies in percent; FGSM and PGD on all test images, AutoAttack on the ``first`` ones."""
    network.eval()
    task, threat = ClassificationTask(), Threat("linf", EPS, box=(0.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        right = task.correct(network(images), labels)
    found = {"clean": right, "balanced": of_each_class(right, labels)}
    found["fgsm"] = ~FGSM(threat)(network, images, labels, task).wrong & right
    pgd = PGD(threat, steps=20, relative_step=0.25, start="ball", until="wrong")
    found["pgd"] = ~pgd(network, images, labels, task, generator=generator).wrong & right
    found["pgd_balanced"] = of_each_class(found["pgd"], labels)
    found["white_noise"] = (
        ~WhiteNoise(threat, draws=100)(network, images, labels, task, generator=generator).wrong & right
    )
    few = slice(first)
    attacked = AutoAttack(threat, classes=2)(network, images[few], labels[few], task, generator=generator)
    found["autoattack"] = ~attacked.wrong
    found["clean_first"] = right[few]
    return {key: 100 * float(value.float().mean()) for key, value in found.items()}


def of_each_class(right: Tensor, labels: Tensor) -> Tensor:
    """Accuracy of each class: a network that always says one of them has 1 and 0."""
    return torch.stack([right[labels == c].float().mean() for c in labels.unique()])


def load(file: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``(N, 1, 28, 28)`` in [0, 1] and labels ``(N,)``, the test set in a fixed random order."""
    with np.load(file) as arrays:
        images = torch.from_numpy(arrays[f"{part}_images"])[:, None].float() / 255
        labels = torch.from_numpy(arrays[f"{part}_labels"])[:, 0].long()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], labels[order]


FIGURES = {"balanced": "clean", "pgd_balanced": "under PGD-20", "autoattack": "AutoAttack"}


def print_table(arguments: argparse.Namespace) -> None:
    """A row per method, for both sets: mean and standard deviation over the seeds, and passes per sample."""
    rows = read(arguments.results)
    heads = [f"{name}: {head}" for name in ("Breast", "Pneumonia") for head in (*FIGURES.values(), "passes")]
    print("| method | " + " | ".join(heads) + " |")
    print("|---|" + "---:|" * len(heads))
    for key in sorted(METHODS, key=lambda key: key != "standard"):  # what the others are compared with comes first
        cells = [METHODS[key].name]
        for name in EPOCHS:
            of = [r for r in rows if r["set"] == name and r["method"] == key]
            cells += [spread([r[figure] for r in of if figure in r], "-") for figure in FIGURES]
            cells.append(f"{statistics.mean(r['passes_per_sample'] for r in of):.1f}" if of else "-")
        if set(cells[1:]) != {"-"}:
            print("| " + " | ".join(cells) + " |")


def read(file: Path) -> list[dict[str, Any]]:
    """The results so far."""
    return json.loads(file.read_text()) if file.exists() else []


if __name__ == "__main__":
    main()
