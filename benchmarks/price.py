"""What robustness costs: from one plain nnU-Net to robust ones, at budgets counted in network passes.

    export nnUNet_raw=... nnUNet_preprocessed=...        # Dataset004_Hippocampus, planned and preprocessed
    python benchmarks/hippocampus.py prepare             # CPU-sized plans
    python benchmarks/price.py queue price.yaml --folder runs       # resumable: kill it, start it again
    python benchmarks/price.py table price.yaml --folder runs --output docs/results/price.json --picture price.png

``table`` adds what has finished to the figures that the output holds, prints all of them, and draws those whose job
has a ``label``. The plan is read again before every job, so that jobs can be added while the queue runs::

    cases: 8                                     # first validation cases; a job's `skip: 12` leaves out 12 before them
    attacks: [dice, ce]                          # losses that PGD-20 raises; both may be said for one job too
    jobs:
      - {name: plain_2d, configuration: 2d, trainer: nnUNetTrainer, steps: 4000, lr: 0.03}
      - {name: sat_2d, configuration: 2d, trainer: SATTrainer, base: plain_2d, budget: 1.0, factor: 7, lr: 0.005,
         settings: {eps: 0.1, unit: rms, norm: l2, steps: 2}}
      - {name: final_sat_2d, of: sat_2d, cases: 8}     # by `monai-adv evaluate --attacks standard`
      - {name: sat_2d_90, robust: sat_2d, share: 0.9}  # between base and model: by `monai-adv interpolate`

``budget`` is a share of the passes of ``base``; ``factor`` are the passes per sample (in forwards; a clean step has 3)
that the number of steps is reckoned with, and the passes that were made are what the table shows. ``ema``: decay of a
moving average of the weights, which are measured then (``measured: [checkpoint_final.pth, checkpoint_averaged.pth]``:
both). A model is measured on whole volumes of the fold's first validation cases, without mirroring, L2 RMS 0.1
(or the job's ``rms``) for each network input (slice or volume), nothing clamped: 20 steps of PGD on the soft Dice of
the volume, or on the cross-entropy, of which the worse counts for each case.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from monai_adv.attacks import PGD
from monai_adv.attacks.losses import cross_entropy
from monai_adv.evaluation.figures.results import gather
from monai_adv.exit_codes import ExitCode
from monai_adv.network_state import bare
from monai_adv.settings import ENV_PREFIX
from monai_adv.tasks import SegmentationTask
from monai_adv.tasks.dice_score import mean_dice
from monai_adv.tasks.volume_slices import VolumeSlicesTask
from monai_adv.threats import Threat
from monai_adv.yaml_text import read_yaml
from nnunet_trainers.checkpoint import read_any, write_checkpoint
from nnunet_trainers.deployed import DeployedModel
from nnunet_trainers.interpolation import checkpoints_between
from nnunet_trainers.short_training import short_training

CLEAN = 3  # forwards' worth of a clean step, per sample
RMS = 0.1
FOLD = 0
MARKERS = [*"oPsD^vX<>*ph8dH", r"$\clubsuit$", r"$\spadesuit$", r"$\diamondsuit$"]
LEGEND_COLUMNS = 6
FINAL, AVERAGED = "checkpoint_final.pth", "checkpoint_averaged.pth"

Job = dict[str, Any]


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("queue", "job", "table"))
    parser.add_argument("plan", type=Path)
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoints and figures, outside the repository")
    parser.add_argument("--name", help="job: which one")
    parser.add_argument("--output", type=Path, help="table: JSON file")
    parser.add_argument("--picture", type=Path, help="table: PNG file")
    arguments = parser.parse_args()
    {"queue": queue, "job": job, "table": table}[arguments.command](arguments)


def queue(arguments: argparse.Namespace) -> None:
    """One job after the other, each in a process of its own; what is done or has failed is not done again."""
    while True:
        plan = read_yaml(arguments.plan.read_text())
        waiting = [j["name"] for j in plan["jobs"] if not (arguments.folder / j["name"] / "figures.json").exists()]
        waiting = [name for name in waiting if not (arguments.folder / name / "failed").exists()]
        if not waiting:
            return
        command = [sys.executable, __file__, "job", str(arguments.plan), "--folder", str(arguments.folder)]
        folder = arguments.folder / waiting[0]
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("a") as log:
            environment = {**os.environ, "nnUNet_results": str(folder)}  # which nnU-Net reads when it is imported
            code = subprocess.run([*command, "--name", waiting[0]], stdout=log, stderr=log, env=environment).returncode
        if code:
            (folder / "failed").write_text(f"exit code {code}, see log.txt; remove this file to try again\n")


def job(arguments: argparse.Namespace) -> None:
    """Train and measure one model, or measure one of them again."""
    torch.set_num_threads(1)
    plan = read_yaml(arguments.plan.read_text())
    this = next(j for j in plan["jobs"] if j["name"] == arguments.name)
    folder = arguments.folder / this["name"]
    if "of" in this:
        figures = final(this, folder, arguments.folder)
    elif "share" in this:
        figures = between(this, folder, arguments.folder, plan)
    else:
        figures = trained(this, folder, arguments.folder, plan)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def trained(this: Job, folder: Path, runs: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Train, and measure what came out."""
    base = this.get("base") and json.loads((runs / this["base"] / "figures.json").read_text())
    figures = train(this, folder, base, runs)
    figures["measured"] = {}
    model = next(folder.glob(f"*/{this['trainer']}__*__{this['configuration']}"))
    for checkpoint in this.get("measured", [AVERAGED if "ema" in this else FINAL]):
        figures["measured"][checkpoint] = measure(model, checkpoint, {**plan, **this})
    return figures


def between(this: Job, folder: Path, runs: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Measure what lies between a model and the plain one that it comes from; its price is that of the model."""
    figures = json.loads((runs / this["robust"] / "figures.json").read_text())
    trained_as = figures["job"]
    (plain,) = (runs / trained_as["base"]).glob(f"*/*/fold_{FOLD}/{FINAL}")
    (robust,) = (runs / this["robust"]).glob(f"*/*/fold_{FOLD}/{FINAL}")
    model = folder / robust.relative_to(runs / this["robust"]).parents[1]
    (model / f"fold_{FOLD}").mkdir(parents=True, exist_ok=True)
    for name in ("plans.json", "dataset.json"):
        shutil.copy(robust.parents[1] / name, model)
    (checkpoint,) = checkpoints_between(plain, robust, [this["share"]])
    write_checkpoint(checkpoint, model / f"fold_{FOLD}" / FINAL)
    measured = measure(model, FINAL, {"rms": trained_as.get("rms", RMS), **plan, **this})
    known = {k: figures[k] for k in ("steps", "batch", "passes_per_sample", "passes", "budget", "machine")}
    job = {**{k: v for k, v in trained_as.items() if k != "label"}, **this}
    return {"job": job, **known, "measured": {FINAL: measured}, "date": date.today().isoformat()}


# ---------------------------------------------------------------------- training


def train(this: Job, folder: Path, base: dict[str, Any] | None, runs: Path) -> dict[str, Any]:
    """Train as far as it has not been trained yet; what it cost."""
    per_epoch = this.get("iterations", 25)
    if base is None:
        weights, steps = this.get("weights"), this["steps"]
    else:
        weights = str(next((runs / this["base"]).glob(f"*/*/fold_{FOLD}/{FINAL}")))
        steps = this.get("steps") or round(this["budget"] * base["passes"] / (this["factor"] * base["batch"]))
    epochs = max(1, round(steps / per_epoch))
    if "settings" in this:
        settings = {"robust_validation_batches": 1, "robust_validation_steps": 10, "save_every": 2, **this["settings"]}
        os.environ.update({f"{ENV_PREFIX}{k.upper()}": str(v) for k, v in settings.items()})
    start = time.process_time()
    averages = Averages(this["ema"]) if this.get("ema") else None
    done = short_training(
        this.get("dataset", "4"),
        this["configuration"],
        FOLD,
        this["trainer"],
        this.get("plans", "nnUNetPlansCPU"),
        epochs=epochs,
        iterations=per_epoch,
        validation_iterations=2,
        initial_lr=this["lr"],
        weights=weights,
        seed=this.get("seed", 0),
        after_epoch=averages.after_epoch if averages else None,
        before=averages.before if averages else None,
        go_on=True,
    )
    if averages and averages.model is not None:
        averages.write(Path(done.output_folder))
    rows = done.robustness.rows if hasattr(done, "robustness") else []
    per_sample = sum(r["passes_per_sample"] for r in rows) / len(rows) if rows else CLEAN
    batch = int(done.configuration_manager.batch_size)
    made = epochs * per_epoch * per_sample * batch + this.get("earlier_passes", 0)
    return {
        "job": this,
        "steps": epochs * per_epoch,
        "batch": batch,
        "passes_per_sample": per_sample,
        "passes": made,
        "budget": made / base["passes"] if base else None,
        "cpu_seconds": round(time.process_time() - start),
        "rows": rows,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, no GPU, one thread, torch {torch.__version__}",
    }


class Averages:
    """A moving average of the weights, kept beside the training."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.model: AveragedModel | None = None

    def before(self, trainer: Any) -> None:
        """Once the weights are loaded: average from now on."""
        network = bare(trainer.network)
        self.model = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(self.decay))
        kept = Path(trainer.output_folder) / "average.pt"
        if kept.exists() and trainer.current_epoch > 0:
            self.model.load_state_dict(torch.load(kept, weights_only=True))
        step: Callable[..., Any] = trainer.optimizer.step

        def stepped(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            assert self.model is not None
            self.model.update_parameters(network)
            return result

        trainer.optimizer.step = stepped

    def after_epoch(self, trainer: Any) -> None:
        """Keep it for a resume."""
        assert self.model is not None
        torch.save(self.model.state_dict(), Path(trainer.output_folder) / "average.pt")

    def write(self, folder: Path) -> None:
        """The final checkpoint with averaged weights."""
        assert self.model is not None
        checkpoint = read_any(str(folder / FINAL))
        checkpoint["network_weights"] = self.model.module.state_dict()
        torch.save(checkpoint, folder / AVERAGED)


# ---------------------------------------------------------------------- measuring


def measure(model: Path, checkpoint: str, how: dict[str, Any]) -> dict[str, Any]:
    """Dice of whole volumes, in %, clean and attacked.

    Args:
        model, checkpoint: its folder, and a file in it.
        how: ``cases``: how many, after the first ``skip``; ``attacks``: losses; ``rms``: the radius, unless it is
            :data:`RMS`.
    """
    attacks, rms = how["attacks"], how.get("rms", RMS)
    deployed = DeployedModel.from_folder(model, FOLD, checkpoint)
    dataset = model.parent.name
    splits = json.loads((Path(os.environ["nnUNet_preprocessed"]) / dataset / "splits_final.json").read_text())
    cases = sorted(splits[FOLD]["val"])[how.get("skip", 0) :][: how["cases"]]
    rows = [measure_case(deployed, dataset, case, attacks, rms) for case in cases]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in ("clean", "worst") if name in rows[0]}
    return {**means, "cases": rows}


def measure_case(
    deployed: DeployedModel, dataset: str, case: str, attacks: Sequence[str], rms: float
) -> dict[str, Any]:
    """One volume, clean and under attack."""
    network, judge = deployed.as_network(), SegmentationTask.for_evaluation()
    raw, ending = Path(os.environ["nnUNet_raw"]) / dataset, deployed.dataset_json["file_ending"]
    files = [raw / "imagesTr" / f"{case}_{c:04d}{ending}" for c in range(len(deployed.channel_names))]
    volume, labels, _ = deployed.preprocess_labelled(files, raw / "labelsTr" / f"{case}{ending}")
    images, target = deployed.to_inputs(volume), deployed.to_inputs(labels)

    def score(x: torch.Tensor) -> float:
        with torch.no_grad():
            logits = deployed.to_volume(network(x))[None]
        return 100 * float(mean_dice(judge.dice(logits, labels[None])))

    task: SegmentationTask = judge
    if deployed.is_2d:
        with torch.no_grad():
            task = VolumeSlicesTask.of(judge, network(images), target, expected=0.5)
    threat = Threat("l2", rms, unit="rms")
    losses = {"dice": None, "ce": cross_entropy}
    found = {}
    for name in attacks:
        attack = PGD(threat, steps=20, loss=losses[name])
        found[name] = score(attack(network, images, target, task).images)
    worst = {"worst": min(found.values())} if found else {}
    return {"case": case, "clean": score(images), **found, **worst}


def final(this: Job, folder: Path, runs: Path) -> dict[str, Any]:
    """The report of the product itself on a model of the queue: `standard`, in the original geometry."""
    trained = json.loads((runs / this["of"] / "figures.json").read_text())
    (checkpoint,) = list(trained["measured"])[-1:]
    options = {
        "-d": trained["job"].get("dataset", "4"), "-c": trained["job"]["configuration"], "-f": FOLD,
        "-tr": trained["job"]["trainer"], "-p": trained["job"].get("plans", "nnUNetPlansCPU"), "-chk": checkpoint,
        "--norm": "l2", "--unit": "rms", "--eps": this.get("rms", RMS), "--attacks": "standard",
        "--cases": this["cases"], "--threads": 1, "--device": "cpu", "-o": folder / "report",
    }  # fmt: skip
    command = ["monai-adv", "evaluate", "-y", *(str(word) for pair in options.items() for word in pair)]
    done = subprocess.run(command, check=False, env={**os.environ, "nnUNet_results": str(runs / this["of"])})
    if done.returncode not in (ExitCode.FINISHED, ExitCode.NOT_RELIABLE):  # such figures are kept
        done.check_returncode()
    found = gather(folder / "report")
    (model,) = found.models
    (level,) = (level for level in model.summaries if level)
    clean, worst = model.summaries[""], model.summaries[level]
    return {
        "job": this, "clean": 100 * clean.mean, "worst": 100 * worst.mean, "lowest": 100 * worst.lowest,
        "interval": [100 * worst.interval.low, 100 * worst.interval.high] if worst.interval.exists else None,
        "cases": worst.count,
        "verdict": str(model.verdict), "date": date.today().isoformat(),
    }  # fmt: skip


# ---------------------------------------------------------------------- what has been found so far


def table(arguments: argparse.Namespace) -> None:
    """JSON, a table for the page and a picture of what has been measured so far, failures included."""
    output: Path = arguments.output
    found = json.loads(output.read_text()) if output.exists() else {}
    for this in read_yaml(arguments.plan.read_text())["jobs"]:
        folder = arguments.folder / this["name"]
        if (folder / "figures.json").exists():
            found[this["name"]] = json.loads((folder / "figures.json").read_text())
            if "label" in this:  # may have been given after the job was done
                found[this["name"]]["job"]["label"] = this["label"]
        elif (folder / "failed").exists():
            found[this["name"]] = {"job": this, "failed": (folder / "failed").read_text().strip()}
        if this.get("weights") and this["name"] in found:
            found[this["name"]]["job"]["weights"] = Path(this["weights"]).name
    output.write_text(json.dumps(found, indent=1) + "\n")
    found = {name: figures for name, figures in found.items() if "job" in figures}
    finals = {f["job"]["of"]: f for f in found.values() if "of" in f["job"] and "failed" not in f}
    lines = []
    for name, figures in found.items():
        if "measured" not in figures:
            continue
        measured = list(figures["measured"].values())[-1]
        final_one = finals.get(name)
        told = f"{final_one['worst']:.1f} ({final_one['cases']} cases)" if final_one else ""
        attacked = f"{measured['worst']:.1f}" if "worst" in measured else ""
        budget = "" if figures["budget"] is None else f"{figures['budget']:.2f}"
        lines.append(
            f"| {name} | {budget} | {figures['steps']} | {figures['passes_per_sample']:.1f} | {measured['clean']:.1f} "
            f"| {attacked} | {told} |"
        )
    names = ("run", "budget", "steps", "passes per sample", "clean", "PGD-20", "`standard`")
    print(f"| {' | '.join(names)} |\n|---{'|---:' * (len(names) - 1)}|")
    print("\n".join(lines))
    draw(found, arguments.picture)


def draw(found: dict[str, Any], file: Path) -> None:
    """Worst Dice against passes, clean Dice as colour, a marker for each method; a panel for each configuration."""
    shown = [f for f in found.values() if "label" in f["job"] and f.get("measured")]
    configurations = sorted({f["job"]["configuration"] for f in shown})
    labels = list(dict.fromkeys(f["job"]["label"] for f in shown))
    markers = dict(zip(labels, MARKERS[: len(labels)], strict=True))
    figure, axes = plt.subplots(1, len(configurations), figsize=(6 * len(configurations), 5), squeeze=False)
    for panel, configuration in zip(axes[0], configurations, strict=True):
        rows = [f for f in shown if f["job"]["configuration"] == configuration]
        measured = [list(f["measured"].values())[-1] for f in rows]
        clean = Normalize(min(m["clean"] for m in measured), max(m["clean"] for m in measured))
        for figures, dice in zip(rows, measured, strict=True):
            panel.scatter(
                figures["budget"] or 0.0, dice["worst"], c=[dice["clean"]], norm=clean, cmap="viridis", s=70,
                marker=markers[figures["job"]["label"]],
            )  # fmt: skip
        panel.set_xlabel("passes, in those of the plain training")
        panel.set_ylabel(f"Dice under PGD-20, L2 RMS {RMS:g}, in %")
        panel.set_title(configuration)
        figure.colorbar(ScalarMappable(clean, "viridis"), ax=panel, label="clean Dice in %")
    legend = [Line2D([], [], marker=m, color="gray", linestyle="", label=label) for label, m in markers.items()]
    figure.legend(handles=legend, loc="lower center", ncols=LEGEND_COLUMNS, frameon=False)
    figure.tight_layout(rect=(0, 0.02 + 0.045 * ceil(len(legend) / LEGEND_COLUMNS), 1, 1))
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    main()
