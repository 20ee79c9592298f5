"""The two-moons table of the ARFL paper (Hao et al., arXiv version, Table 1): ours beside the published numbers.

    python benchmarks/two_moons.py run --workers 2           # goes on where it stopped; writes JSON
    python benchmarks/two_moons.py table                     # Markdown
    python benchmarks/two_moons.py draw                      # decision boundaries as PNG

What the paper gives: 10,000 training and 1,000 test points with noise 0.2; a perceptron 2-10-10-1; 5,000 epochs; FGSM
of radius 0.05 in training and 0.2 in the test; the feature term on the 10 features before the last layer, with weight
0.5; five seeds; accuracy on clean and attacked points, and the mean of both.

What it leaves open, and what is taken here (the defaults of :class:`Choices`):

* optimiser and learning rate: Adam, 0.001, constant; batch: all 10,000 points, so an epoch is one update;
* activation: ReLU; the features are taken before it (option), so that they have a sign;
* the norm of FGSM: L-inf, from the clean point, without a box; no scaling of the inputs;
* sign of the feature term on attacked points: plus; the other one and our label-aware term are rows of their own;
* dual training: both versions of every point, r = 0.5;
* TRADES: beta 6, one step of full length from a Gaussian start; MIRST: alpha 1, the usual four weights, instances after
  2, 4, 6 and 8 steps of a quarter of the radius;
* a seed draws points and initial weights; the weights after the last epoch count, the best ones are not looked for.

All ten rows over five seeds take about 45 minutes of one core, a third of it MIRST. DSBN is left out, as in the paper.
PGD with 20 steps in the same ball stands beside FGSM, because one step says little about robustness.
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
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal, get_args

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from spread import spread
from torch import Tensor, nn
from tqdm import tqdm

from monai_adv.attacks import FGSM, PGD
from monai_adv.defenses import METHODS, Batch
from monai_adv.tasks import ClassificationTask
from monai_adv.threats import Threat

DOCS = Path(__file__).parents[1] / "docs"
RESULTS = DOCS / "results" / "two_moons.json"
PICTURE = DOCS / "images" / "two_moons.png"

TRAINING_POINTS, TEST_POINTS, NOISE = 10_000, 1_000, 0.2
TEST_EPS = 0.2
LAM = 0.5

Optimiser = Literal["adam", "sgd"]
Features = Literal["before", "after"]


@dataclass(frozen=True)
class Choices:
    """What the paper leaves open and moves the numbers most, and its own length and radius, for shorter runs."""

    optimiser: Optimiser = "adam"
    rate: float = 0.001
    features: Features = "before"  # the activation
    epochs: int = 5_000
    train_eps: float = 0.05


@dataclass(frozen=True)
class Row:
    """A row of the table: a method with its settings, and the paper's (accuracy, its deviation) clean and attacked."""

    letter: str
    name: str
    method: str
    settings: dict[str, Any]
    paper: tuple[tuple[float, float], tuple[float, float]] | None


ROWS = (
    Row("A", "Standard", "standard", {}, ((95.2, 0.4), (71.4, 1.8))),
    Row("B", "Standard + ARFL", "arfl", {"r": 1.0}, ((93.8, 2.5), (73.0, 2.1))),
    Row("C", "SAT", "sat", {}, ((84.4, 3.4), (81.8, 2.3))),
    Row("D", "SAT + ARFL", "arfl", {"r": 0.0}, ((84.8, 4.3), (81.8, 0.8))),
    Row("E", "Dual", "dual", {"r": 0.5}, ((95.8, 1.2), (72.6, 1.2))),
    Row("F", "Dual + ARFL", "arfl", {"r": 0.5}, ((96.0, 0.9), (79.6, 5.3))),
    Row("G", "TRADES", "trades", {"beta": 6.0}, ((95.6, 0.8), (77.2, 0.7))),
    Row("H", "MIRST", "mirst", {"relative_step": 0.25}, ((92.0, 0.6), (76.4, 1.4))),
    Row("F-", "Dual + ARFL, minus sign", "arfl", {"r": 0.5, "adversarial_sign": -1}, None),
    Row("F*", "Dual + ARFL, label-aware (ours)", "arfl", {"r": 0.5, "correlation": "label_aware"}, None),
)


def main() -> None:
    """Run one of the three commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run")
    run.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    run.add_argument("--rows", nargs="+", default=[r.letter for r in ROWS], choices=[r.letter for r in ROWS])
    run.add_argument("--workers", type=int, default=2)
    run.add_argument("--optimiser", choices=get_args(Optimiser), default=Choices.optimiser)
    run.add_argument("--rate", type=float, default=Choices.rate)
    run.add_argument("--features", choices=get_args(Features), default=Choices.features)
    run.add_argument("--epochs", type=int, default=Choices.epochs)
    run.add_argument("--train-eps", type=float, default=Choices.train_eps)
    run.set_defaults(run=measure_all)
    table = commands.add_parser("table")
    table.set_defaults(run=print_table)
    picture = commands.add_parser("draw")
    picture.add_argument("--picture", type=Path, default=PICTURE)
    picture.set_defaults(run=draw)
    for command in (run, table, picture):
        command.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.run(arguments)


def measure_all(arguments: argparse.Namespace) -> None:
    """Train and attack whatever is not in the results yet; every result is written as soon as it is there."""
    choices = Choices(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(Choices)})
    results = read(arguments.results) or {"choices": dataclasses.asdict(choices), "runs": []}
    if results["choices"] != dataclasses.asdict(choices):
        raise SystemExit(f"{arguments.results} holds results of {results['choices']}: give --results another file.")
    done = {(r["row"], r["seed"]) for r in results["runs"]}
    wanted = [(row, seed) for seed in arguments.seeds for row in ROWS if row.letter in arguments.rows]
    with ProcessPoolExecutor(arguments.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        runs = [pool.submit(measure, row, seed, choices) for row, seed in wanted if (row.letter, seed) not in done]
        for run in tqdm(as_completed(runs), total=len(runs)):
            results["runs"].append(run.result())
            arguments.results.write_text(json.dumps(results, indent=1) + "\n")


def measure(row: Row, seed: int, choices: Choices) -> dict[str, Any]:
    """One training and its evaluation."""
    torch.manual_seed(seed)
    network = Perceptron()
    begin = time.perf_counter()
    train(network, row, seed, choices)
    seconds = time.perf_counter() - begin
    points, labels = test_set(seed)
    with torch.no_grad():
        features = network.features(points)
    return {
        "row": row.letter,
        "seed": seed,
        **evaluate(network, points, labels),
        "feature_size": float(features.abs().mean()),
        "seconds": seconds,
        "weights": [round(w, 6) for p in network.parameters() for w in p.detach().flatten().tolist()],
        "date": str(date.today()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


class Perceptron(nn.Module):
    """2-10-10-1 with ReLU; one logit, that of class 1. ``before`` and ``after`` give the features a name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.before, self.last = nn.Linear(2, 10), nn.Linear(10, 10), nn.Linear(10, 1)
        self.after = nn.ReLU()

    def features(self, points: Tensor) -> Tensor:
        """``(B, 10)`` before the activation."""
        features: Tensor = self.before(self.first(points).relu())
        return features

    def forward(self, points: Tensor) -> Tensor:
        """``(B, 1)`` logits of points ``(B, 2)``."""
        logit: Tensor = self.last(self.after(self.features(points)))
        return logit


def train(network: Perceptron, row: Row, seed: int, choices: Choices) -> None:
    """The loop of one's own; an epoch is one update on all points."""
    fgsm = {"steps": 1, "relative_step": 1.0, "start": "gaussian" if row.method == "trades" else "clean"}
    arfl = {"lam": LAM, "feature_layer": choices.features}
    given = {"norm": "linf", "eps": choices.train_eps, "seed": seed, **fgsm, **arfl, **row.settings}
    method = METHODS[row.method]
    settings = method.settings(**{k: v for k, v in given.items() if k in method.settings.names()})
    defense = method.defense(ClassificationTask(), settings)
    optimiser: torch.optim.Optimizer
    if choices.optimiser == "adam":
        optimiser = torch.optim.Adam(network.parameters(), choices.rate)
    else:
        optimiser = torch.optim.SGD(network.parameters(), choices.rate)
    batch = Batch(*moons(TRAINING_POINTS, seed))
    network.train()
    for _ in range(choices.epochs):
        optimiser.zero_grad()
        for part in defense.losses(network, batch):
            part.loss.backward()
        optimiser.step()


def evaluate(network: nn.Module, points: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracies in percent."""
    network.eval()
    task, threat = ClassificationTask(), Threat("linf", TEST_EPS)
    with torch.no_grad():
        right = task.correct(network(points), labels)
    pgd = PGD(threat, steps=20, relative_step=0.25, until="wrong")
    found = {
        "clean": right,
        "fgsm": ~FGSM(threat)(network, points, labels, task).wrong & right,
        "pgd": ~pgd(network, points, labels, task).wrong & right,
    }
    return {key: 100 * float(value.float().mean()) for key, value in found.items()}


def moons(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points ``(count, 2)`` on two interleaved half circles with Gaussian noise, and labels ``(count,)``."""
    generator = np.random.default_rng(seed)
    angle = np.linspace(0, np.pi, count // 2)
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    lower = np.stack([1 - np.cos(angle), 0.5 - np.sin(angle)], 1)
    points = np.concatenate([upper, lower]) + NOISE * generator.normal(size=(2 * len(angle), 2))
    return torch.from_numpy(points).float(), torch.arange(2).repeat_interleave(len(angle))


def test_set(seed: int) -> tuple[Tensor, Tensor]:
    """Points that no seed trains on."""
    return moons(TEST_POINTS, 1_000_000 + seed)


def print_table(arguments: argparse.Namespace) -> None:
    """Mean and standard deviation over the seeds, the paper's numbers beside them."""
    results = read(arguments.results)
    print("Choices: " + ", ".join(f"{k} {v}" for k, v in results["choices"].items()) + "\n")
    print("| | method | clean | FGSM | PGD-20 | size of a feature | paper: clean | FGSM |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    for row in ROWS:
        runs = [r for r in results["runs"] if r["row"] == row.letter]
        if not runs:
            continue
        cells = [spread([r[key] for r in runs], "-") for key in ("clean", "fgsm", "pgd")]
        cells.append(f"{statistics.mean(r['feature_size'] for r in runs):.1f}")
        cells += ["", ""] if row.paper is None else [f"{value}±{deviation}" for value, deviation in row.paper]
        print(f"| {row.letter} | {row.name} | " + " | ".join(cells) + " |")


def draw(arguments: argparse.Namespace) -> None:
    """The probability of class 1 over the plane, the boundary, and test points; the first seed of every row."""
    runs = read(arguments.results)["runs"]
    first = {r["row"]: r for r in sorted(runs, key=lambda r: -r["seed"])}
    rows = [row for row in ROWS if row.letter in first]
    matplotlib.use("Agg")
    columns = min(len(rows), 5)
    figure, axes = plt.subplots(
        math.ceil(len(rows) / columns), columns, squeeze=False, sharex=True, sharey=True, layout="constrained",
        figsize=(2.6 * columns, 2.5 * math.ceil(len(rows) / columns)),
    )  # fmt: skip
    x, y = torch.meshgrid(torch.linspace(-1.8, 2.8, 240), torch.linspace(-1.4, 1.9, 180), indexing="xy")
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    for row, axis in zip(rows, axes.flat, strict=False):
        run = first[row.letter]
        network = Perceptron()
        nn.utils.vector_to_parameters(torch.tensor(run["weights"]), network.parameters())
        with torch.no_grad():
            probability = network(torch.stack([x, y], -1).view(-1, 2)).sigmoid().view(x.shape)
        axis.contourf(x, y, probability, levels=20, cmap="coolwarm", vmin=0, vmax=1, alpha=0.6)
        axis.contour(x, y, probability, levels=[0.5], colors="black", linewidths=1)
        points, labels = test_set(run["seed"])
        axis.scatter(*points[::4].T, c=labels[::4], s=2, cmap="coolwarm")
        axis.set_title(f"{row.letter} {row.name}\nclean {run['clean']:.1f}, FGSM {run['fgsm']:.1f}", fontsize=7)
        axis.tick_params(labelsize=6)
    figure.savefig(arguments.picture, dpi=150)


def read(file: Path) -> dict[str, Any]:
    """The results so far."""
    return json.loads(file.read_text()) if file.exists() else {}


if __name__ == "__main__":
    main()
