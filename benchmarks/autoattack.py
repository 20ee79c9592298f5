"""Our AutoAttack for classification against the reference: the same robust accuracy, in how much of its time?

    pip install monai-adv scikit-learn torchattacks
    OMP_NUM_THREADS=1 python benchmarks/autoattack.py --cache CACHE --output docs/results/autoattack.json

The authors' own code is not on PyPI; torchattacks 3.5.1 carries its attacks. **The reference** here is the ensemble as
its paper and code define it (Croce & Hein, ICML 2020): APGD-CE, targeted APGD-DLR and targeted FAB with 100 steps,
min(classes - 1, 9) targets, then Square with 5000 queries and the schedule of 10 000, each on the samples that the
ones before left. ``torchattacks.AutoAttack`` itself makes 10 steps instead of 100 and shrinks the schedule;
``--contenders reference ours shipped`` measures it too. What the reference cannot run (the targeted DLR loss has no
meaning below four classes) is tried, and the error is shown. ``fused`` is ours on ``monai_adv.networks.fused``'s copy
of the network, as ``evaluate(..., fuse=True)`` searches; its images are judged by the network itself.

Both get the same frozen network, images, batch and number of threads; they take turns. Robust accuracy is counted
here, from the attacked images: the network is wrong and the image lies in the ball and in the box. Passes are counted
here too, by hooks on the network. Wall time depends on what else the machine does; CPU time does so less.

The first run trains the networks (autoattack_models.py), about half an hour on one slow core.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
import torchattacks
from autoattack_models import RECIPES, Recipe, load, network
from torch import Tensor, nn

from monai_adv.attacks.autoattack import AutoAttack
from monai_adv.networks.fused import fused
from monai_adv.tasks.classification import ClassificationTask
from monai_adv.threats import Threat

BOX = (0.0, 1.0)
TOLERANCE = 1e-5  # of the radius, for rounding


@dataclass
class Meter:
    """Seconds and passes of one attack.

    Attributes:
        seconds, cpu_seconds: wall, and of this process alone.
        forward, backward: in samples; every backward through the output counts, one per class where it is repeated.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    forward: int = 0
    backward: int = 0

    @contextmanager
    def measure(self, model: nn.Module) -> Iterator[None]:
        """Count what happens inside."""

        def count_backward(gradient: Tensor) -> None:
            self.backward += len(gradient)

        def count_forward(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            self.forward += len(inputs[0])
            if output.requires_grad:
                output.register_hook(count_backward)

        handle = model.register_forward_hook(count_forward)
        begin, cpu_begin = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - begin
            self.cpu_seconds += time.process_time() - cpu_begin
            handle.remove()


@dataclass
class Stage:
    """One attack of an ensemble: how many samples it got, how many of them it left, or why it could not run."""

    name: str
    samples: int
    left: int
    meter: Meter
    error: str | None = None


@dataclass
class Run:
    """One ensemble on one network.

    Attributes:
        robust: indices of the samples that it left.
        longest: largest perturbation that counted, in radii.
    """

    robust: list[int]
    longest: float
    meter: Meter
    stages: list[Stage] = field(default_factory=list)


@dataclass(frozen=True)
class Problem:
    """A network, the samples to attack, and the threat."""

    recipe: Recipe
    model: nn.Module
    images: Tensor
    labels: Tensor

    @property
    def threat(self) -> Threat:
        return Threat(self.recipe.norm, self.recipe.eps, box=BOX, unit="norm")

    def fooled(self, attacked: Tensor, index: Tensor) -> tuple[Tensor, float]:
        """Which attacked images count, and the largest perturbation among them, in radii."""
        clean = self.images[index]
        with torch.no_grad():
            wrong = self.model(attacked).argmax(1) != self.labels[index]
        length = self.threat.size(attacked - clean) / self.recipe.eps
        inside = (attacked >= BOX[0]).flatten(1).all(1) & (attacked <= BOX[1]).flatten(1).all(1)
        counts = wrong & inside & (length <= 1 + TOLERANCE)
        return counts, float(length[counts].max()) if bool(counts.any()) else 0.0


def reference_attacks(problem: Problem) -> dict[str, torchattacks.attack.Attack]:
    """The four attacks of the standard ensemble with the paper's numbers of steps and targets."""
    recipe = problem.recipe
    common = {"norm": {"linf": "Linf", "l2": "L2"}[recipe.norm], "eps": recipe.eps, "seed": 0}
    targets = min(recipe.classes, 10)
    return {
        "apgd-ce": torchattacks.APGD(problem.model, loss="ce", steps=100, **common),
        "apgd-t": torchattacks.APGDT(problem.model, steps=100, n_classes=targets, **common),
        "fab-t": torchattacks.FAB(problem.model, steps=100, multi_targeted=True, n_classes=targets, **common),
        "square": torchattacks.Square(problem.model, n_queries=5000, resc_schedule=False, **common),
    }


def run_reference(problem: Problem) -> Run:
    """The standard ensemble; an attack that cannot run leaves its samples to the next."""
    return run_in_turn(problem, reference_attacks(problem))


def run_shipped(problem: Problem) -> Run:
    """torchattacks' own AutoAttack, with its own numbers of steps."""
    norm = {"linf": "Linf", "l2": "L2"}[problem.recipe.norm]
    attack = torchattacks.AutoAttack(
        problem.model, norm=norm, eps=problem.recipe.eps, n_classes=problem.recipe.classes, seed=0
    )
    return run_in_turn(problem, {"shipped": attack})


def run_in_turn(problem: Problem, attacks: dict[str, Callable[[Tensor, Tensor], Tensor]]) -> Run:
    """Each attack on what the ones before left; samples that are wrong without any attack are never attacked."""
    total, stages, longest = Meter(), [], 0.0
    with total.measure(problem.model):
        with torch.no_grad():
            left = (problem.model(problem.images).argmax(1) == problem.labels).nonzero()[:, 0]
        for name, attack in attacks.items():
            meter, samples = Meter(), len(left)
            if samples == 0:
                break
            try:
                with meter.measure(problem.model):
                    attacked = attack(problem.images[left], problem.labels[left]).detach()
            except Exception as error:  # whatever the reference dies of is a result
                stages.append(Stage(name, samples, samples, meter, f"{type(error).__name__}: {error}"))
                continue
            counts, length = problem.fooled(attacked, left)
            longest = max(longest, length)
            left = left[~counts]
            stages.append(Stage(name, samples, len(left), meter))
    return Run(left.tolist(), longest, total, stages)


def run_ours(problem: Problem) -> Run:
    """Our standard ensemble."""
    return run_on(problem, problem.model)


def run_fused(problem: Problem) -> Run:
    """The same on a copy with BatchNorm folded; a sample whose image fools only that is left."""
    return run_on(problem, fused(problem.model, problem.images[:8]))


def run_on(problem: Problem, model: nn.Module) -> Run:
    """Our standard ensemble on a network, its images judged by the problem's."""
    attack = AutoAttack(problem.threat, classes=problem.recipe.classes, version="standard")
    meter = Meter()
    with meter.measure(model):
        result = attack(
            model, problem.images, problem.labels, ClassificationTask(), generator=torch.Generator().manual_seed(0)
        )
    everything = torch.arange(len(problem.images))
    counts, longest = problem.fooled(result.images, everything)
    if model is problem.model and not torch.equal(counts, result.wrong):
        raise SystemExit("our AutoAttack claims other samples than its images show")
    if (result.passes.forward, result.passes.backward_input) != (meter.forward, meter.backward):
        raise SystemExit(f"our AutoAttack counts {result.passes}, the hooks {meter}")
    return Run((~counts).nonzero()[:, 0].tolist(), longest, meter)


CONTENDERS: dict[str, Callable[[Problem], Run]] = {
    "reference": run_reference,
    "ours": run_ours,
    "fused": run_fused,
    "shipped": run_shipped,
}


def compare(problem: Problem, contenders: list[str], repeats: int, threads: int) -> dict[str, Run]:
    """Every contender ``repeats`` times, in turn; the times are medians, all else is the same each time."""
    few = replace(problem, images=problem.images[:2], labels=problem.labels[:2])
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    with ExitStack() as stack:
        # A process of its own for each: what one asks of the memory allocator must not serve the other.
        processes = {
            name: stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, (threads,)))
            for name in contenders
        }
        for name, process in processes.items():
            process.submit(CONTENDERS[name], few).result()  # imports and first kernels are not timed
        for _ in range(repeats):
            for name, process in processes.items():
                runs[name].append(process.submit(CONTENDERS[name], problem).result())
    for taken in runs.values():
        if any(run.robust != taken[0].robust for run in taken):
            raise SystemExit("the same seed gave two results")
        for value in ("seconds", "cpu_seconds"):
            setattr(taken[0].meter, value, statistics.median(getattr(run.meter, value) for run in taken))
    return {name: taken[0] for name, taken in runs.items()}


def row(name: str, kind: str, problem: Problem, runs: dict[str, Run]) -> dict[str, object]:
    """What the JSON says of one network."""
    with torch.no_grad():
        clean = problem.model(problem.images).argmax(1) == problem.labels
    return {
        "data": name,
        "network": kind,
        "recipe": asdict(problem.recipe),
        "samples": len(problem.images),
        "clean_accuracy": float(clean.float().mean()),
        "runs": {
            key: {
                "robust_accuracy": len(run.robust) / len(problem.images),
                **asdict(run),
                "robust": " ".join(map(str, run.robust)),
            }
            for key, run in runs.items()
        },
    }


def table(rows: list[dict[str, object]]) -> str:
    """Markdown: one line per network and contender."""
    lines = [
        "| data | network | threat | samples | clean | | robust | seconds | CPU seconds | forward | backward |",
        "|---|---|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for entry in rows:
        recipe = entry["recipe"]
        threat = f"{recipe['norm']} {recipe['eps']:.3g}"
        for key, run in entry["runs"].items():
            meter = run["meter"]
            lines.append(
                f"| {entry['data']} | {entry['network']} | {threat} | {entry['samples']} "
                f"| {entry['clean_accuracy']:.1%} | {key} | {run['robust_accuracy']:.1%} | {meter['seconds']:.1f} "
                f"| {meter['cpu_seconds']:.1f} | {meter['forward']:,} | {meter['backward']:,} |"
            )
            for stage in run["stages"]:
                if stage["error"]:
                    lines.append(f"| | | | | | {stage['name']} | cannot run: {stage['error']} | | | | |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for CIFAR-10 and the trained networks")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of busi_224 and medmnist_28")
    parser.add_argument("--only", nargs="+", default=list(RECIPES), choices=RECIPES, help="data sets")
    parser.add_argument("--networks", nargs="+", default=["plain", "robust"], choices=["plain", "robust"])
    parser.add_argument("--contenders", nargs="+", default=["reference", "ours"], choices=CONTENDERS)
    parser.add_argument("--samples", type=int, default=200, help="the first so many of each test set")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON, written after every network")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, object]] = []
    for name in arguments.only:
        data = load(name, arguments.data, arguments.cache)
        for kind in arguments.networks:
            model = network(name, kind, data, arguments.cache)
            images, labels = (values[: arguments.samples] for values in data.test)
            problem = Problem(RECIPES[name], model, images, labels)
            rows.append(
                row(name, kind, problem, compare(problem, arguments.contenders, arguments.repeats, arguments.threads))
            )
            print(table(rows[-1:]), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps({"setting": setting(arguments), "rows": rows}, indent=1))
    print(table(rows))


def setting(arguments: argparse.Namespace) -> dict[str, object]:
    """Where and with what the figures were made."""
    packages = ("torch", "torchattacks", "monai-adv")
    return {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} thread(s), CPU",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "repeats": arguments.repeats,
        "box": BOX,
    }


if __name__ == "__main__":
    main()
