"""What a GPU does to attacks and defences: parity with the CPU, precision, compilation, memory, step costs, throughput.

    make gpu PLANS=nnUNetPlans.json                       # writes gpu.json, at most 8 minutes
    python benchmarks/gpu.py --device cpu --tiny --output try.json       # its logic, without a GPU

Without a network, carry the wheels (hatchling among them): ``PIP_NO_INDEX=1 PIP_FIND_LINKS=wheels make gpu PLANS=...``.
``--plans`` is what nnU-Net planned (its automatic patch and batch sizes); images are random, of that size, with a block
as foreground: times and memory do not depend on what is seen. All goes into one JSON, written after each section.
A section that fails says so, and one that the time does not suffice for is named as left out.

F is one forward of the batch under the precision that nnU-Net trains with. A clean step is about 3 F.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_adv.attacks import APGD, FGSM, PGD, CosPGD, SegPGD
from monai_adv.attacks.base import input_gradient
from monai_adv.defenses import METHODS, Batch, Defense
from monai_adv.network_state import frozen
from monai_adv.sample_state import SampleIds
from monai_adv.settings import choices
from monai_adv.tasks import SegmentationSettings, SegmentationTask
from monai_adv.threats import Threat

RMS = 0.1
TRAINED = ("standard", "ima", "fat", "sat")
PLAIN = "plain"
RESERVE = 30.0
"""Seconds that a section must have left to begin."""
LOW = {"float16": torch.float16, "bfloat16": torch.bfloat16}
Report = dict[str, Any]


def main(words: list[str] | None = None) -> Report:
    """Run the sections one after the other; what was written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, help="nnUNetPlans.json of an automatic planning")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480.0, help="for everything (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="small networks and batches")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"))
    arguments = parser.parse_args(words)
    if (arguments.plans is None) != arguments.tiny:
        parser.error("give --plans FILE, or --tiny")
    return run(arguments, SECTIONS, time.perf_counter)


def run(arguments: Any, sections: dict[str, Callable[[Any], Any]], now: Callable[[], float]) -> Report:
    """Each section's result, its error, or that there was no time for it; the file is whole after each."""
    device = torch.device(arguments.device)
    report: Report = {"machine": machine(device), "tiny": arguments.tiny}
    end = now() + arguments.seconds
    for name, section in sections.items():
        begin = now()
        if end - begin < min(RESERVE, arguments.seconds / 4):
            report[name] = {"left out": f"{end - begin:.0f} s were left"}
        else:
            try:
                report[name] = {"result": section(arguments), "seconds": round(now() - begin, 1)}
            except Exception as error:  # a section must not cost the others
                report[name] = {"failed": f"{type(error).__name__}: {error}", "seconds": round(now() - begin, 1)}
            if device.type == "cuda":
                torch.cuda.empty_cache()
        arguments.output.write_text(json.dumps(report, indent=1) + "\n")
    return report


def machine(device: torch.device) -> Report:
    """What the figures are of."""
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"device": card, "torch": torch.__version__, "cuda": torch.version.cuda, "date": str(date.today())}


# ---------------------------------------------------------------------- parity


def parity(arguments: Any) -> Report:
    """The same attack, and the same step of every method, on the CPU and on the device, in full single precision."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    device = torch.device(arguments.device)
    found: Report = {"attacks": {}, "steps": {}}
    for dims in (2, 3):
        for attack in attacks():
            here, there = (attacked(attack, dims, place) for place in (torch.device("cpu"), device))
            found["attacks"][f"{type(attack).__name__} {dims}d"] = apart(here, there)
        for key, method in METHODS.items():
            if "segmentation" in method.not_for:
                continue
            cpu = torch.device("cpu")
            one, other = (stepped(key, dims, cpu, seed) for seed in (0, 1))
            if apart(one, other) > 0:
                found["steps"][f"{method.name} {dims}d"] = "draws random numbers, which differ between devices"
            else:
                found["steps"][f"{method.name} {dims}d"] = apart(one, stepped(key, dims, device, 0))
    return found


def attacks() -> list[Any]:
    """Those that need no random numbers from a given start."""
    threat = Threat("l2", RMS, unit="rms")
    given: dict[str, Any] = {"steps": 10, "until": "lowest"}
    kinds = (PGD, SegPGD, CosPGD)
    return [FGSM(threat), *(kind(threat, start="clean", **given) for kind in kinds), APGD(threat, **given)]


def attacked(attack: Any, dims: int, device: torch.device) -> Tensor:
    """The images that an attack leaves, started from the clean ones."""
    images, target = batch_of((4, 1, *[16] * dims))
    network = taught(dims).to(device)
    generator = torch.Generator(device).manual_seed(0)
    given = {"start": torch.zeros_like(images).to(device)} if isinstance(attack, APGD) else {}
    task = SegmentationTask.for_evaluation()
    result = attack(network, images.to(device), target.to(device), task, generator=generator, **given)
    return result.images.cpu()


def stepped(key: str, dims: int, device: torch.device, seed: int) -> Tensor:
    """All weights after one step of a method."""
    torch.manual_seed(0)
    network = METHODS[key].defense.prepare(taught(dims)).to(device)
    images, target = batch_of((4, 1, *[16] * dims))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    starts = choices(get_type_hints(METHODS[key].settings).get("start", None))
    start = {"start": "clean"} if "clean" in starts else {}  # some methods have no gradient there
    defense = bound(key, network, optimizer, len(images), device, steps=3, seed=seed, **start)
    train_step(defense, network, optimizer, Batch(images.to(device), target.to(device), torch.arange(len(images))))
    return torch.cat([p.detach().flatten().cpu() for p in network.parameters()])


def apart(one: Tensor, other: Tensor) -> float:
    """Largest difference, as a share of the largest value."""
    return float((one - other).abs().max() / one.abs().max())


# ---------------------------------------------------------------------- precision


def precision(arguments: Any) -> Report:
    """Loss, margins, direction of the gradient and its zeros, in half precision beside single precision."""
    device = torch.device(arguments.device)
    found: Report = {}
    for dims in (2, 3):
        images, target = (part.to(device) for part in batch_of((4, 1, *[16 if arguments.tiny else 64] * dims)))
        network, task = taught(dims).to(device), SegmentationTask.for_evaluation()
        whole = seen(network, task, images, target, None)
        for name, kind in LOW.items():
            low = seen(network, task, images, target, kind)
            found[f"{name} {dims}d"] = {
                "loss": apart(whole["loss"], low["loss"]),
                "margin": float((whole["margin"] - low["margin"]).abs().max()),
                "direction": float(cosine(whole["gradient"], low["gradient"]).min()),
                "zero gradients": {
                    "float32": share_of_zeros(whole["gradient"]),
                    name: share_of_zeros(low["gradient"]),
                    f"{name}, without our scale": share_of_zeros(low["plain"]),
                },
            }
    return found


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return F.cosine_similarity(one.float().flatten(1), other.float().flatten(1))


def share_of_zeros(gradient: Tensor) -> float:
    return float(gradient.eq(0).float().mean())


def seen(network: nn.Module, task: Any, images: Tensor, target: Tensor, kind: torch.dtype | None) -> dict[str, Tensor]:
    """What a step of an attack sees, and what the plain gradient of the mean would be."""
    x = images.clone().requires_grad_()
    with frozen(network) as model, nullcontext() if kind is None else torch.autocast(images.device.type, kind):
        output = model(x)
    losses, gradient = input_gradient(output, x, lambda o: task.sample_loss(o, target), "eval")
    with frozen(network) as model, nullcontext() if kind is None else torch.autocast(images.device.type, kind):
        (plain,) = torch.autograd.grad(task.sample_loss(model(x), target).mean(), x)
    margin = task.margin(output.detach(), target)
    return {"loss": losses, "margin": margin, "gradient": gradient, "plain": plain}


# ---------------------------------------------------------------------- compilation


def compilation(arguments: Any) -> Report:
    """Graphs that a compiled network needs for a method, seconds of the first step, and whether more follow later."""
    from torch._dynamo.utils import counters

    device = torch.device(arguments.device)
    found: Report = {}
    for key in ("ima", "sat"):
        torch._dynamo.reset()
        counters.clear()
        network: nn.Module = torch.compile(small(2).to(device))  # type: ignore[assignment]
        images, target = (part.to(device) for part in batch_of((8, 1, 32, 32)))
        optimizer = torch.optim.SGD(network.parameters(), 1e-3)
        defense = bound(key, network, optimizer, len(images), device, steps=3)
        seconds, graphs = [], []
        for _ in range(3 if arguments.tiny else 8):
            begin = now(device)
            train_step(defense, network, optimizer, Batch(images, target, torch.arange(len(images))))
            seconds.append(now(device) - begin)
            graphs.append(counters["stats"]["unique_graphs"])
        found[METHODS[key].name] = {
            "graphs after the first step": graphs[0], "graphs at the end": graphs[-1],
            "seconds of the first step": seconds[0], "seconds of the others": statistics.median(seconds[1:]),
        }  # fmt: skip
    return found


# ---------------------------------------------------------------------- steps of the automatic plans


def steps(arguments: Any) -> Report:
    """F, and what a step costs in F and in memory: nnU-Net's loss and precision, its automatic patch and batch."""
    device = torch.device(arguments.device)
    repeats = 1 if arguments.tiny else 5
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    found: Report = {}
    for name, (network, shape) in planned(arguments).items():
        network = network.to(device)
        images, target = (part.to(device) for part in batch_of(shape))
        forward = median(lambda net=network, x=images: one_forward(net, x, kind), device, repeats)  # type: ignore[misc]
        rows: Report = {"batch": list(shape), "F in seconds": forward}
        for key in TRAINED:
            twin = copy.deepcopy(network)
            optimizer = torch.optim.SGD(twin.parameters(), 0.0)
            defense = bound(key, twin, optimizer, len(images), device)
            batch = Batch(images, target, torch.arange(len(images)))

            def step(d: Defense = defense, n: nn.Module = twin, o: Any = optimizer, b: Batch = batch) -> None:
                train_step(d, n, o, b, kind)

            seconds, peak = median(step, device, repeats), peak_memory(step, device)
            label = PLAIN if key == "standard" else METHODS[key].name
            rows[label] = {"seconds": seconds, "F": seconds / forward, "peak memory MiB": peak}
        for label in rows:
            if isinstance(rows[label], dict):
                rows[label]["times plain"] = rows[label]["seconds"] / rows[PLAIN]["seconds"]
        found[name] = rows
    return found


def planned(arguments: Any) -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Network and batch of the plan's 2d and 3d_fullres; small ones of our own where it shall be tiny."""
    if arguments.tiny:
        return {f"{dims}d": (small(dims), (2, 1, *[8] * dims)) for dims in (2, 3)}
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    plans = json.loads(arguments.plans.read_text())
    channels = len(plans["foreground_intensity_properties_per_channel"])
    made = {}
    for name in ("2d", "3d_fullres"):
        if name in plans["configurations"]:
            part = plans["configurations"][name]
            architecture = part["architecture"]
            network = get_network_from_plans(
                architecture["network_class_name"], architecture["arch_kwargs"],
                architecture["_kw_requires_import"], channels, 3, deep_supervision=False,
            )  # fmt: skip
            made[name] = (network, (part["batch_size"], channels, *part["patch_size"]))
    return made


def one_forward(network: nn.Module, images: Tensor, kind: torch.dtype) -> None:
    with frozen(network) as model, torch.no_grad(), torch.autocast(images.device.type, kind):
        model(images)


# ---------------------------------------------------------------------- evaluation


def throughput(arguments: Any) -> Report:
    """Inputs of the plan's size that PGD-20 attacks in a second."""
    device, repeats = torch.device(arguments.device), 1 if arguments.tiny else 3
    found: Report = {}
    for name, (network, shape) in planned(arguments).items():
        images, target = (part.to(device) for part in batch_of(shape))
        attack = PGD(Threat("l2", RMS, unit="rms"), steps=20, start="clean", until="lowest")
        network, task = network.to(device), SegmentationTask.for_evaluation()
        seconds = median(lambda a=attack, n=network, x=images, y=target, t=task: a(n, x, y, t), device, repeats)  # type: ignore[misc]
        found[name] = {"inputs per second": len(images) / seconds, "batch": list(shape)}
    return found


# ---------------------------------------------------------------------- parts


def small(dims: int) -> nn.Module:
    """A network for three classes with normalisation that has two branches where a method asks for them."""
    torch.manual_seed(0)
    conv, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
    return nn.Sequential(
        conv(1, 8, 3, padding=1), norm(8), nn.LeakyReLU(), conv(8, 8, 3, padding=1), nn.LeakyReLU(), conv(8, 3, 1)
    )


def taught(dims: int) -> nn.Module:
    """The same after a few steps: an attack has nothing to do where everything is wrong."""
    network = small(dims)
    network.load_state_dict(_taught_weights(dims))
    return network


@cache
def _taught_weights(dims: int) -> dict[str, Tensor]:
    network, (images, target) = small(dims), batch_of((4, 1, *[16] * dims))
    optimizer = torch.optim.Adam(network.parameters(), 0.02)
    for _ in range(40):
        optimizer.zero_grad()
        loss_of(network(images), target).backward()
        optimizer.step()
    return network.state_dict()


def batch_of(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images whose two foreground classes are brighter, with noise; the same every time."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(shape[0], 1, *shape[2:], dtype=torch.long)
    for value, begin in ((1, 4), (2, 2)):
        labels[(slice(None), slice(None), *(slice(s // begin, s // begin + max(1, s // 4)) for s in shape[2:]))] = value
    return labels + 0.3 * torch.randn(shape, generator=generator), labels


def loss_of(output: Any, target: Any) -> Tensor:
    return F.cross_entropy(output, target[:, 0])


def bound(key: str, network: nn.Module, optimizer: Any, count: int, device: torch.device, **settings: Any) -> Defense:
    """A method ready for its first step. Nearly every sample counts as right, so that it is attacked."""
    method = METHODS[key]
    names = {f.name for f in dataclasses.fields(method.settings)}
    given = {k: v for k, v in {"eps": RMS, "norm": "l2", **settings}.items() if k in names}
    task = SegmentationTask(loss_of, SegmentationSettings(threshold=1e-6))
    defense = method.defense(task, method.settings(**given))
    defense.bind(SampleIds({"train": count}), device)
    defense.attach(network, optimizer)
    defense.on_epoch_start(3, 4)
    return defense


def train_step(
    defense: Defense, network: nn.Module, optimizer: Any, batch: Batch, kind: torch.dtype | None = None
) -> None:
    """A step as hosts make it: forwards under autocast, backwards outside."""
    parts: Iterator[Any] = defense.losses(network, batch)
    updated = False
    optimizer.zero_grad(set_to_none=True)
    while True:
        with nullcontext() if kind is None else torch.autocast(batch.images.device.type, kind):
            part = next(parts, None)
        if part is None:
            break
        part.loss.backward()
        updated = part.update
        if updated:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        del part
    if not updated:
        optimizer.step()


def median(work: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Seconds, after a run that allocates."""
    work()
    taken = []
    for _ in range(repeats):
        begin = now(device)
        work()
        taken.append(now(device) - begin)
    return statistics.median(taken)


def peak_memory(work: Callable[[], Any], device: torch.device) -> float | None:
    """MiB above what was there before; None where nobody counts it."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


SECTIONS: dict[str, Callable[[Any], Any]] = {
    "parity": parity, "precision": precision, "steps": steps, "throughput": throughput, "compilation": compilation,
}  # fmt: skip


if __name__ == "__main__":
    main()
