"""How many kills does an evaluation survive? Each comes at a random moment; at the end every number must be the same.

    python benchmarks/kills.py --kills 100

A run is killed (SIGKILL) and started again in the same folder until it ends. A kill counts as survived if the folder
then holds exactly the numbers of a run that nobody disturbed, and no image or half-written file is left behind.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.protocol import LiveSource, Model
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.run.session import Session
from monai_adv.evaluation.run.workers import ThisProcess
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import read_records

SETTINGS = EvaluationSettings((Level("linf", 0.02), Level("linf", 0.06)), "quick")


def classifier() -> Classifier:
    """A linear network on 12 images in three groups."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.randn(3, 16, generator=generator))
        network[1].bias.zero_()
    images = torch.rand(12, 1, 4, 4, generator=generator)
    return Classifier("tiny", network, images, network(images).argmax(1), "abc", box=(0, 1), group=4)


def segmenter() -> Segmenter:
    """A threshold on two images."""
    network = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([0.0, 4.0]).view(2, 1, 1, 1))
        network.bias.copy_(torch.tensor([0.0, -2.0]))
    images = [torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    return Segmenter("threshold", network, images, [(i[0] > 0.5).long() for i in images], ("lesion",))


def evaluate(model: Model, folder: Path) -> int:
    """The whole command, without what it prints."""
    with closing(Session([LiveSource(model)], SETTINGS, folder, ThisProcess(), say=lambda line: None)) as session:
        session.prepare()
        return session.finish().code


def left_after(model: Model, folder: Path, draw: random.Random, longest: float, kills: int) -> int:
    """Start, kill, start again until the evaluation ends; returns how often it was killed, at most ``kills`` times."""
    killed = 0
    while True:
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars
            try:
                evaluate(model, folder)
            except BaseException:
                os._exit(1)
            os._exit(0)
        if killed < kills:
            time.sleep(draw.uniform(0, longest))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        elif os.WEXITSTATUS(status):
            raise RuntimeError(f"it cannot go on after {killed} kills")
        else:
            return killed


def numbers(folder: Path) -> str:
    """All records without their seconds."""
    return repr([replace(record, seconds=0.0) for record in read_records(folder)])


def left_behind(folder: Path) -> list[Path]:
    """What nobody needs any more."""
    return [f for f in folder.rglob("*") if f.is_file() and (f.suffix == ".partial" or "images" in f.parts)]


def main(words: Sequence[str] | None = None) -> int:
    """Print kills and survivals; 0 if they are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    torch.set_num_threads(1)
    draw, done, survived, runs = random.Random(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as place:
        expected, longest = {}, {}
        for make in (classifier, segmenter):
            start = time.perf_counter()
            evaluate(make(), Path(place) / make.__name__)
            expected[make], longest[make] = numbers(Path(place) / make.__name__), time.perf_counter() - start
            write_report(Path(place) / make.__name__)
        while done < args.kills:
            make, folder = (classifier, segmenter)[runs % 2], Path(place) / str(runs)
            killed = left_after(make(), folder, draw, longest[make] / 2, min(10, args.kills - done))
            faults = {
                "other numbers": numbers(folder) != expected[make],
                "no report": not (folder / "report.html").exists(),
                f"left behind: {left_behind(folder)}": bool(left_behind(folder)),
            }
            whole = not any(faults.values())
            done, survived, runs = done + killed, survived + killed * whole, runs + 1
            print(
                f"{runs} evaluations, {done} kills, {survived} survived",
                *(f for f, true in faults.items() if true),
                flush=True,
            )
    return 0 if survived == done else 1


if __name__ == "__main__":
    sys.exit(main())
