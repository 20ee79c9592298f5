"""What a training step of every method costs: passes made, the least this batch needed, seconds, memory.

Runs on the real trainers: nnU-Net's plans, loader, augmentation, loss and optimiser. Example::

    python benchmarks/step_cost.py 4 2d -p nnUNetPlans --weights .../checkpoint_final.pth --device cpu
    python benchmarks/step_cost.py 4 2d --methods ima trades --output step_cost.json

``--weights`` matters: an untrained network gets every sample wrong, and then IMA attacks none. From a checkpoint of the
same method the memory of the samples is taken as well; otherwise IMA's margins all lie midway between delta and eps.
Settings come from MONAI_ADV_SETTINGS or MONAI_ADV_<NAME>, as in training.

The least that a batch needs: a gradient, for the weights or for the images, needs one forward at its point; a search
needs its forwards. For IMA it is counted per sample (monai_adv/defenses/ima.py): every sample 1 F and 1 B_full; every
sample trained on again 1 F and 1 B_full; Algorithm 2, crossed at step k: k F, k B_in and the halvings; not crossed:
K - 1 F and K B_in (x_0 is the clean forward, the last check is the noisy forward); Algorithm 3: K - 1 F and K B_in, and
1 F and the halvings if it crossed. For the other methods it is the passes that were made, which
tests/defenses/test_<method>.py hold against the method's formula. T_min prices the least with the measured seconds of
each pass on the whole batch.
Passes of a second network (LBGAT's teacher, FGSM-SDI's generator) are in the measured time only.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch.profiler import ProfilerActivity, profile

from monai_adv.attacks import Ascended, Ascent
from monai_adv.defenses import METHODS, Method
from monai_adv.errors import InputError
from monai_adv.network_state import bare, frozen
from monai_adv.statistics import Passes
from nnunet_trainers.checkpoint import SECTION, read_any
from nnunet_trainers.robust_trainer import RobustTrainer


def main() -> None:
    """Print a report per method."""
    arguments = parse()
    reports = []
    for key in arguments.methods:
        try:
            reports.append(measure(arguments, METHODS[key]))
        except InputError as error:  # a method that cannot run with these plans: said, not left out
            reports.append({"method": METHODS[key].name, "refused": str(error)})
        print(json.dumps(reports[-1], indent=1), flush=True)
        if arguments.output:
            arguments.output.write_text(json.dumps(reports, indent=1) + "\n")


def measure(arguments: argparse.Namespace, method: Method) -> dict[str, Any]:
    """Passes, seconds and memory of one method's step beside nnU-Net's own."""
    torch.manual_seed(0)
    trainer = make(arguments, method.trainer)
    batch = next(trainer.dataloader_train)
    warm_up(trainer, batch)

    attacks: list[Ascended] = []
    passes, least = passes_of(trainer, batch, attacks)
    seconds = price(trainer, batch, arguments.repeats)
    plain_step = plain_step_of(trainer)
    times = alternate(
        {"plain step": lambda: plain_step(batch), "step": lambda: trainer.train_step(batch)},
        trainer,
        arguments.repeats,
    )
    memory = {
        "plain": peak_memory(lambda: plain_step(batch), trainer.device),
        "method": peak_memory(lambda: trainer.train_step(batch), trainer.device),
    }
    size = len(batch["data"])
    t_min = sum(getattr(least, n) * seconds[n] for n in seconds) / size
    report = {
        "method": method.name,
        "configuration": f"{arguments.dataset} {arguments.configuration} {arguments.plans}",
        "device": str(trainer.device) if trainer.device.type == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": list(batch["data"].shape),
        "attacked": len(attacks[0].wrong) if attacks else 0,
        "crossed": int(attacks[0].wrong.sum()) if attacks else 0,
        "passes made (per sample)": per_sample(passes, size),
        "least needed (per sample)": per_sample(least, size),
        "seconds per pass (batch)": seconds,
        "seconds per step": times,
        "T_min": t_min,
        "T_min / T_measured": t_min / times["step"],
        "step / plain": times["ratio"],
        "peak memory MiB": memory,
        "memory / plain": memory["method"] / memory["plain"],
    }
    if method.key == "ima":
        off = switched_off(trainer)
        steps = {"plain": lambda: plain_step(batch), "strength 0": lambda: off(batch)}
        report["strength 0 / plain"] = alternate(steps, trainer, 4 * arguments.repeats)["ratio"]
    return report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("configuration")
    parser.add_argument("-p", "--plans", default="nnUNetPlans")
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="nnU-Net checkpoint of the same plans")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    able = [key for key, method in METHODS.items() if "segmentation" not in method.not_for]
    parser.add_argument("--methods", nargs="+", default=able, choices=able)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write the report here")
    return parser.parse_args()


def make(arguments: argparse.Namespace, name: str) -> Any:
    """A started trainer that leaves nothing in the user's results folder."""
    os.environ["nnUNet_results"] = tempfile.mkdtemp()
    os.environ.setdefault("nnUNet_n_proc_DA", "0")
    trainer = get_trainer_from_args(
        arguments.dataset, arguments.configuration, arguments.fold, name, arguments.plans, False,
        torch.device(arguments.device),
    )  # fmt: skip
    trainer.on_train_start()
    trainer.on_epoch_start()
    trainer.on_train_epoch_start()
    if arguments.weights:
        checkpoint = read_any(arguments.weights)
        bare(trainer.network).load_state_dict(checkpoint["network_weights"])
        if checkpoint["trainer_name"] == name and SECTION in checkpoint:
            trainer.defense.load_state_dict(checkpoint[SECTION]["defense"])
        elif name == "IMATrainer":
            settings = trainer.defense.settings
            trainer.defense.margins.values.fill_((settings.eps + settings.growth) / 2)
    return trainer


@contextmanager
def memory_kept(trainer: RobustTrainer) -> Iterator[None]:
    """What the defence remembers about samples is as before afterwards, so that every step is alike."""
    states = trainer.defense.states.values()
    before = [state.values.clone() for state in states]
    yield
    for state, values in zip(states, before, strict=True):
        state.values = values


def plain_step_of(trainer: RobustTrainer) -> Callable[[dict[str, Any]], Any]:
    """nnU-Net's own step on the same network, loss and optimiser."""
    return lambda batch: nnUNetTrainer.train_step(trainer, batch)


def switched_off(trainer: RobustTrainer) -> Callable[[dict[str, Any]], Any]:
    """Our step with eps = delta = 0."""
    twin = copy.copy(trainer)
    defense = type(trainer.defense)(trainer.defense.task, type(trainer.defense.settings)(eps=0, delta=0))
    defense.bind(trainer.sample_ids, trainer.device)
    twin.defense = defense
    return twin.train_step


def warm_up(trainer: RobustTrainer, batch: dict[str, Any]) -> None:
    """Allocators, cuDNN's search, compilation. No learning: every step is alike."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = 0.0
    trainer.train_step(batch)  # memory that is made at the first batch
    for _ in range(2):
        with memory_kept(trainer):
            trainer.train_step(batch)
        nnUNetTrainer.train_step(trainer, batch)


def passes_of(trainer: RobustTrainer, batch: dict[str, Any], attacks: list[Ascended]) -> tuple[Passes, Passes]:
    """The passes of one step, and the least that it needed; ``attacks`` gets the results of its attacks."""
    defense, settings = trainer.defense, trainer.defense.settings
    attack = Ascent.__call__

    def recording(self: Ascent, *args: Any, **kwargs: Any) -> Ascended:
        attacks.append(attack(self, *args, **kwargs))
        return attacks[-1]

    defense.statistics.passes = Passes()
    Ascent.__call__ = recording  # type: ignore[method-assign]
    try:
        with memory_kept(trainer):
            trainer.train_step(batch)
    finally:
        Ascent.__call__ = attack  # type: ignore[method-assign]
    made = copy.copy(defense.statistics.passes)
    if trainer.method.key != "ima":
        return made, made
    size = len(batch["data"])
    least = Passes(forward=size, backward_full=size)
    for result in attacks:
        least += Passes(forward=len(result.wrong), backward_full=len(result.wrong))  # trained on again
        crossed = result.wrong
        k = result.steps if settings.algorithm == 2 else torch.full_like(result.steps, settings.steps)
        search = int(crossed.sum()) * settings.searches
        checks = int(crossed.sum())  # a crossed sample's last check is not its training forward
        least += Passes(forward=int((k - 1).clamp(min=0).sum()) + checks + search, backward_input=int(k.sum()))
    return made, least


def price(trainer: RobustTrainer, batch: dict[str, Any], repeats: int) -> dict[str, float]:
    """Seconds of each pass on the whole batch: median of ``repeats``."""
    images = batch["data"].to(trainer.device)
    target = [t.to(trainer.device) for t in batch["target"]]
    network, task = trainer.network, trainer.defense.task

    def forward() -> float:
        with frozen(network) as model, trainer._autocast():
            begin = now(trainer.device)
            task.correct(model(images), target)
            return now(trainer.device) - begin

    def backward_input() -> float:
        with frozen(network) as model:
            with trainer._autocast():
                x = images.clone().requires_grad_()
                loss = task.sample_loss(model(x), target).sum()
            begin = now(trainer.device)
            torch.autograd.grad(loss, x)
            return now(trainer.device) - begin

    def backward_full() -> float:
        with trainer._autocast():
            loss = trainer.loss(network(images), target)
        begin = now(trainer.device)
        loss.backward()
        trainer._update_weights()
        return now(trainer.device) - begin

    passes = {"forward": forward, "backward_input": backward_input, "backward_full": backward_full}
    with torch.enable_grad():
        return {name: statistics.median(run() for _ in range(repeats + 1)) for name, run in passes.items()}


def alternate(steps: dict[str, Callable[[], Any]], trainer: RobustTrainer, repeats: int) -> dict[str, float]:
    """Median seconds of each step, taken in turn so that a drifting machine hits all alike; and the median pair
    ratio."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            with memory_kept(trainer):
                begin = now(trainer.device)
                step()
                taken[name].append(now(trainer.device) - begin)
    first, second = taken.values()
    ratio = statistics.median(b / a for a, b in zip(first, second, strict=True))
    return {**{name: statistics.median(values) for name, values in taken.items()}, "ratio": ratio}


def peak_memory(step: Callable[[], Any], device: torch.device) -> float:
    """MiB allocated at the highest point of a step, above what was there before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profiler.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    total = [
        e["args"]["Total Allocated"]
        for e in sorted(events, key=lambda e: e.get("ts", 0))
        if e.get("name") == "[memory]"
    ]
    return (max(total) - total[0]) / 2**20


def per_sample(passes: Passes, size: int) -> dict[str, float]:
    return {n: round(getattr(passes, n) / size, 2) for n in ("forward", "backward_input", "backward_full")}


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
