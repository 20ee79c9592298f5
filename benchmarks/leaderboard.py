"""The leaderboard: every measured method on the public data at hand, and rows of others whose evidence was verified.

    python benchmarks/leaderboard.py page                                     # docs/leaderboard.md, written again
    python benchmarks/leaderboard.py add REPORT --data "BreastMNIST, test"    # verify, keep the row, write the page

``add`` holds evidence.json against report and records as `monai-adv verify` does; what differs is refused. A row of
ours comes from its result file every time the page is written, so there is no second place for its figures; what they
cost, where no result file says it, comes from the table behind `monai-adv methods --recommend`.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_adv.cli import measured
from monai_adv.cli.measured import MEASURED, Experiment
from monai_adv.cli.recommend import CONSTANT
from monai_adv.defenses import METHODS
from monai_adv.errors import InputError
from monai_adv.evaluation.evidence.leaderboard import Board, Entry, Row
from monai_adv.evaluation.evidence.leaderboard_tables import refreshed
from monai_adv.files import write_whole

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SAME_CLASS = "nearly always says the same class"
FOLD = "Hippocampus MRI, fold 0"
LESIONS = "BUSI ultrasound, images with a lesion, fold 0"
SMALL_2D = "nnU-Net 2D (features 8-16-32-64)"
SMALL_3D = "nnU-Net 3D (features 8-16-32-64, batch 2)"
WIDE_3D = "nnU-Net 3D (features 8-32-64-128, batch 2)"
VOLUMES = {"nnU-Net 2D": SMALL_2D, "nnU-Net 3D": WIDE_3D}  # by the names that the bundle's table has for them
EVALUATE = "monai-adv evaluate -d 4 -c 2d -f 0 -p nnUNetPlansCPU -tr"
BUNDLE = "bundles/robust_organ_segmentation/docs/README.md"
IMA_PAGE = "docs/results/bundles.md"
CHECKPOINTS = {"averaged": ", averaged weights", "best_robust": ", the epoch chosen under attack"}
PLAIN = {"nnUNet": ("the start", 1.0), "Standard": ("fine-tuned as the others", 0.2)}
"""Trainers without a defence: settings and cost (300 steps after 1500)."""


def results(name: str) -> Any:
    """A result file of docs/results."""
    return json.loads((DOCS / "results" / name).read_text(encoding="utf-8"))


def mean(values: Iterable[float]) -> float:
    """Whatever order they come in."""
    found = list(values)
    return math.fsum(found) / len(found)


def share_of(experiment: Experiment, method: str, settings: str = "") -> float | None:
    """What a training cost beside the plain one, where no result file says it."""
    found = {(row.method, row.settings): row.cost for row in MEASURED if row.experiment == experiment}
    return found.get((method, settings))


def cells(page: str, head: str) -> list[list[str]]:
    """Of the table of a Markdown page that begins with such a head: figures that stand in no other file."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    rest = lines[lines.index(head) + 2 :]
    end = next(i for i, line in enumerate([*rest, ""]) if not line.startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rest[:end]]


def classification() -> Iterator[Row]:
    """Every defence on two sets of MedMNIST: means over the seeds."""
    runs = defaultdict(list)
    for run in results("classification.json"):
        runs[run["set"], run["method"]].append(run)
    names = {"breastmnist": ("BreastMNIST", 100), "pneumoniamnist": ("PneumoniaMNIST", 50)}
    for (data, key), found in runs.items():
        name, first = names[data]
        figure = {k: mean(r[k] for r in found) for k, v in found[0].items() if isinstance(v, float | int)}
        plain = mean(r["epochs"] for r in runs[data, "standard"])
        for attack, score, clean, robust, noise in (
            ("PGD-20", "balanced accuracy", "balanced", "pgd_balanced", None),
            ("PGD-20", "accuracy", "clean", "pgd", "white_noise"),
            ("FGSM", "accuracy", "clean", "fgsm", "white_noise"),
            (f"AutoAttack, first {first} images", "accuracy", "clean_first", "autoattack", None),
        ):
            yield Row(
                board=Board(
                    f"{name}, test images", "Small network, 28 x 28 pixels", "L-inf 4/255, box [0, 1]", attack, score,
                ),
                method=METHODS[key].name, settings=_listed(found[0]["settings"], leave=("norm", "eps", "box", "seed")),
                clean=figure[clean], robust=figure[robust], noise=figure[noise] if noise else None,
                passes=figure["passes_per_sample"],
                share=figure["passes_per_sample"] * figure["epochs"] / (3 * plain), runs=len(found),
                **_constant(figure["balanced"] < CONSTANT, SAME_CLASS),
                command="python benchmarks/classification.py run DATA", source="results/classification.json",
                date=found[0]["date"],
            )  # fmt: skip


def certificates() -> Iterator[Row]:
    """Smoothed networks: what PGD leaves is an upper bound, the certificate a lower one, on the same samples."""
    names = {
        "breastmnist": ("BreastMNIST", 30),
        "pneumoniamnist": ("PneumoniaMNIST", 30),
        "sars_cov2_ct": ("SARS-CoV-2 CT", 15),
    }
    for run in results("certificates.json"):
        rest = {"source": "results/certificates.json", "date": run["date"]}
        if run["method"] == "segmentation":
            yield from _certified_volumes(run, rest)
            continue
        (name, first), certified, shown = names[run["set"]], run["certified"], run["certified_first"]
        constant = shown["0"] == shown[max(run["attacked"], key=float)]  # no change alters an answer
        method, _, more = run["method"].partition(", ")
        why = "; answers as if it did not look at the image" if constant else ""
        for radius, left in run["attacked"].items():
            yield Row(
                board=Board(f"{name}, first {first} test images", "Small network, 28 x 28 pixels, smoothed",
                            f"L2 {radius}, no box", "PGD-20 on the mean of 50 draws", "accuracy"),
                method=METHODS[method].name, settings=f"sigma {run['sigma']}{', ' + more if more else ''}",
                clean=shown["0"], robust=left, certified=shown[radius],
                note=f"certified on {run['images']} images: {certified[radius]:.1f}{why}", ranked=not constant,
                command="python benchmarks/certificates.py classify DATA", **rest,
            )  # fmt: skip


def _certified_volumes(run: dict[str, Any], rest: dict[str, str]) -> Iterator[Row]:
    (network, training), cases = run["set"].split(", "), run["cases"]
    names = {"nnU-Net 2D": SMALL_2D, "nnU-Net 3D": SMALL_3D, "MONAI 3D": "MONAI UNet 3D"}
    method, start = {"plain": ("Standard", ""), "FGSM-RS": ("FGSMRS", ", the weights that the bundle had")}.get(
        training,
        ("Gaussian", ", 2 epochs from the clean weights" if "3D" in network else ", 400 steps from the clean weights"),
    )
    one = "volume" if "3D" in network else "slice"
    radius = f"L2 {mean(case['radius'] for case in cases):.3g} per {one}, no box"
    board = Board(f"{FOLD}, first {len(cases)} cases, network space", f"{names[network]}, smoothed", radius,
                  "PGD-10 on the Dice of the smoothed model", "mean Dice")  # fmt: skip
    at = {"certified": board, "rms 0.05": replace(board, radius=f"L2 0.05 RMS per {one}, no box")}
    weights = "model_clean.pt" if training == "plain" else "gaussian.pt"
    folder = f"NAME BUNDLE --weights models/{weights} --data DATASET"
    if "nnU-Net" in network:
        folder = "NAME MODEL_FOLDER --images IMAGES --labels LABELS"
    for radius, place in at.items():
        yield Row(
            board=place, method=method, settings=f"sigma {run['sigma']}{start}",
            clean=100 * mean(case["clean"] for case in cases),
            robust=100 * mean(case["attacked"][radius] for case in cases),
            certified=100 * mean(case["score"] for case in cases) if radius == "certified" else None,
            command=f"python benchmarks/certificates.py segment {folder} --sigma {run['sigma']}", **rest,
        )  # fmt: skip


def price() -> Iterator[Row]:
    """What robustness costs, in nnU-Net and in the MONAI bundle."""
    runs = results("price.json")
    for name, run in runs.items():
        trained = runs[run["job"]["of"]] if "of" in run.get("job", ()) else run
        for file, found in run.get("measured", {"": run} if trained is not run else {}).items():
            if "worst" not in found:  # a clean Dice alone
                continue
            job = trained["job"]
            flat = job["configuration"] == "2d"
            solid = WIDE_3D if job.get("plans") == "nnUNetPlansWide" else SMALL_3D
            whole = trained is not run  # by the product itself
            cases, skipped = found["cases"] if whole else len(found["cases"]), job.get("skip", 0)
            which = f"{skipped + 1}th to {skipped + cases}th case" if skipped else f"first {cases} cases"
            data = {"4": FOLD, "5": LESIONS}[job.get("dataset", "4")]
            board = Board(
                f"{data}, {which}{'' if whole else ', network space'}", SMALL_2D if flat else solid,
                f"L2 {job.get('rms', 0.1)} RMS per {'slice' if flat else 'volume'}, no box",
                "worst case of standard" if whole else "PGD-20", "mean Dice",
            )  # fmt: skip
            yield Row(
                board=board, method=job["trainer"].removesuffix("Trainer").replace("nnUNet", "Standard"),
                settings=_listed({**job.get("settings", {}), "initial_lr": job["lr"]})
                + next((said for part, said in CHECKPOINTS.items() if part in file), "") + _interpolated(job),
                clean=found["clean"], robust=found["worst"], passes=trained["passes_per_sample"],
                share=trained["budget"] or 1.0, source="results/price.json", date=run["date"],
                verdict="not reliable" if "not reliable" in run.get("verdict", "") else "",
                note="`standard` left 52.3 on the first 2 cases" if name == "earlier_satmix_h" else "",
                command=f"python benchmarks/price.py queue price.yaml --folder runs, job {json.dumps(run['job'])}",
            )  # fmt: skip
    found = results("price_3d.json")
    for run in found["runs"]:
        board = Board(f"{FOLD}, {run['cases']}, network space", "MONAI UNet 3D", "", "PGD-20", "mean Dice")
        for radius, short in (("0.05", "05"), ("0.1", "1")):
            yield Row(
                board=replace(board, radius=f"L2 {radius} RMS per volume, no box"), **_method_of_3d(run, run["epoch"]),
                clean=100 * run["clean"], robust=100 * run[f"pgd20_rms_0_{short}"],
                noise=100 * run[f"noise_rms_0_{short}"] if f"noise_rms_0_{short}" in run else None,
                passes=run["passes_per_sample"], share=run["budget"] or 1.0,
                note="the cases chose the epoch" if run.get("chosen_on_these") else "", **_of_3d(found, run),
            )  # fmt: skip
    board = Board(f"{FOLD}, first 12 cases, network space", "MONAI UNet 3D", "L2 0.1 RMS per volume, no box", "PGD-5",
                  "mean Dice")  # fmt: skip
    for name, epochs in found["by_epoch"].items():
        run = next(run for run in found["runs"] if run["name"] == name)
        for epoch, figures in epochs.items():
            yield Row(
                board=board, **_method_of_3d(run, epoch), clean=100 * figures["clean"],
                robust=100 * figures["pgd5_rms_0_1"], passes=run["passes_per_sample"],
                share=run["budget"] * int(epoch) / run["epoch"], **_of_3d(found, run),
            )  # fmt: skip


def _method_of_3d(run: dict[str, Any], epoch: int | str) -> dict[str, str]:
    if "settings" not in run:
        return {"method": "Standard", "settings": ""}
    settings = f"{_listed(run['settings'])}, epoch {epoch}{_interpolated(run)}"
    return {"method": run.get("method", "SAT"), "settings": settings}


def _interpolated(run: dict[str, Any]) -> str:
    between = 0 < run.get("share", 1) < 1  # 0 and 1 are the two models themselves, measured once more
    return f", then monai-adv interpolate --share {run['share']}" if between else ""


def _of_3d(found: dict[str, Any], run: dict[str, Any]) -> dict[str, str]:
    command = "python -m monai.bundle run --config_file configs/train.json, as docs/results/price.md says"
    return {"command": command, "source": "results/price_3d.json", "date": run.get("date", found["date"])}


def hippocampus() -> Iterator[Row]:
    """Plain nnU-Net and IMA, an older measure: one attack."""
    command = "python benchmarks/hippocampus.py evaluate, at commit f4d98cb"
    for name, model, cases, per in (
        ("hippocampus_2d.json", SMALL_2D, 44, "slice"),
        ("hippocampus_3d_fullres.json", "nnU-Net 3D (features 8-16-32-64)", 6, "volume"),
    ):
        runs = defaultdict(list)
        for run in results(name):
            runs[run["model"], run["condition"], run["radius"]].append(100 * run["dice"])
        for (trainer, condition, radius), found in runs.items():
            if condition != "PGD-20":
                continue
            flat, ima = per == "slice", trainer == "IMATrainer"
            settings = "eps: 15, delta: 2, unit: norm" if flat else "eps: 0.1, delta: 0.02, steps: 10, searches: 5"
            yield Row(
                board=Board(
                    f"{FOLD}, {'all' if flat else 'first'} {cases} cases", model, f"L2 {radius:g} per {per}, no box",
                    "PGD-20", "mean Dice",
                ),
                method="IMA" if ima else "Standard", settings=settings if ima else "",
                clean=mean(runs[trainer, "clean", 0.0]), robust=mean(found),
                noise=mean(runs[trainer, "white noise", radius]),
                share=(share_of(measured.SCRATCH_2D, "IMA", settings) if ima else 1.0) if flat else None,
                note="cost in minutes, not passes" if ima and flat else "", command=command, source=f"results/{name}",
                date="2026-11-21",
            )  # fmt: skip


def fine_tuned() -> Iterator[Row]:
    """Seven methods from one start, and IMA from scratch, by one evaluation each."""
    command = f"{EVALUATE} {{}} --norm l2 --unit norm --eps {{}} --attacks quick --cases 8"
    board = Board(f"{FOLD}, first 8 cases", SMALL_2D, "L2 5 per slice, no box", "worst case of quick", "mean Dice")
    with (DOCS / "results" / "hippocampus_methods.csv").open(encoding="utf-8") as file:
        figures: dict[str, dict[str, float]] = defaultdict(dict)
        for line in csv.DictReader(file):
            if line["class"] == "all" and line["measure"] == "mean Dice":
                figures[line["model"].removesuffix("Trainer")][line["attack"]] = 100 * float(line["value"])
    for name, found in figures.items():
        settings, share = PLAIN.get(name, ("eps: 5, unit: norm", share_of(measured.DEFAULTS_2D, name)))
        yield Row(
            board=board, method="Standard" if name in PLAIN else name, settings=settings, clean=found["clean"],
            robust=found["worst case"], noise=found["white noise"], share=share, verdict="not fully checked",
            command=command.format("...", 5), source="results/hippocampus_methods.csv", date="2026-11-22",
        )  # fmt: skip
    page = "docs/results/evaluation.md"
    rest = {
        "command": command.format("nnUNetTrainer IMATrainer", "1 5 15"),
        "source": "results/evaluation.md",
        "date": "2026-11-21",
    }
    for name, clean, *left in cells(page, "| Dice in % | clean | L2 1 | L2 5 | L2 15 |"):
        ima = name.startswith("IMA")
        for radius, value in zip((1, 5, 15), left, strict=True):
            if ima or radius != 5:  # the plain one at L2 5 is the start, above
                yield Row(
                    board=replace(board, radius=f"L2 {radius} per slice, no box"), method="IMA" if ima else "Standard",
                    settings="eps: 15, delta: 2, unit: norm, 1500 steps from scratch" if ima else "the start",
                    clean=float(clean), robust=float(value), **rest,
                )  # fmt: skip
    worst, noise = cells(page, "| Dice in % | clean | L2 1 | L2 2.5 | L2 5 |")
    for radius, value, random in zip(("1", "2.5", "5"), worst[2:], noise[2:], strict=True):
        yield Row(
            board=replace(board, data=f"{FOLD}, all 44 cases", radius=f"L2 {radius} per slice, no box",
                          attack="worst case of standard"),
            method="Standard", clean=float(worst[1]), robust=float(value), noise=float(random), verdict="reliable",
            command=f"{EVALUATE} nnUNetTrainer --norm l2 --unit norm --eps 1 2.5 5",
            source="results/evaluation.md", date="2026-11-21",
        )  # fmt: skip


def segmentation_bundle() -> Iterator[Row]:
    """Both hosts of robust_organ_segmentation, attacked volume by volume: IMA, and what nnU-Net's folders hold."""
    monai, flat = "eps: 0.2, delta: 0.02, steps: 5, searches: 4", "eps: 15, delta: 2, unit: norm"
    share = share_of(measured.LONG_3D, "IMA", monai)
    yield from _volumes(IMA_PAGE, "all 44 cases", "2026-11-22", "IMA", {"MONAI UNet 3D": (monai, share),
                        "nnU-Net 2D": (flat, share_of(measured.LONG_3D, "IMA", flat))})  # fmt: skip
    others = "13th to 24th case", "2026-11-30"
    for method, host, experiment, settings in (
        ("FGSMRS", "nnU-Net 2D", measured.PRICE_2D, "preset: finetune"),
        ("SAT", "nnU-Net 3D", measured.PRICE_WIDE_3D, "preset: finetune, clean_weight: 0.6"),
    ):
        hosts = {host: (settings, share_of(experiment, method, settings))}
        yield from _volumes(BUNDLE, *others, method, hosts)
    text = " ".join((ROOT / IMA_PAGE).read_text(encoding="utf-8").split())
    found = re.search(r"([\d.]+) clean, ([\d.]+) and ([\d.]+) at the two radii", text)
    assert found, f"{IMA_PAGE} does not say what quick leaves"
    for radius, left in (("0.05", found[2]), ("0.1", found[3])):
        yield Row(
            board=Board(f"{FOLD}, first 6 cases, network space", "MONAI UNet 3D", f"L2 {radius} RMS per volume, no box",
                        "worst case of quick", "mean Dice"),
            method="IMA", settings=monai, clean=float(found[1]), robust=float(left), share=share,
            note="these cases chose the epoch", source="results/bundles.md", date="2026-11-22",
            command="python -m monai.bundle run with configs/robustness.json, --attacks quick --cases 6",
        )  # fmt: skip


def _volumes(
    page: str, cases: str, date: str, method: str, hosts: Mapping[str, tuple[str, float | None]]
) -> Iterator[Row]:
    """A table of a page; of each host the settings of the method and its share of the plain training."""
    for name, clean, noise, *left in cells(
        page, "| | clean | white noise, RMS 0.1 | PGD-20, RMS 0.05 | PGD-20, RMS 0.1 |"
    ):
        host, training = name.split(", ")
        if host not in hosts:  # stands in a result file
            continue
        defended = training == method
        settings, share = hosts[host] if defended else ("", 1.0)
        for radius, value in zip(("0.05", "0.1"), left, strict=True):
            yield Row(
                board=Board(f"{FOLD}, {cases}, network space", VOLUMES.get(host, host),
                            f"L2 {radius} RMS per volume, no box", "PGD-20 on the Dice of the volume", "mean Dice"),
                method=method if defended else "Standard", settings=settings, clean=float(clean), robust=float(value),
                noise=float(noise) if radius == "0.1" else None, share=share,
                note="the first 12 cases chose the epoch" if method == "IMA" and defended and "MONAI" in host else "",
                command="python -m monai.bundle run, as the README of the bundle says",
                source=page.removeprefix("docs/") if page.startswith("docs/") else f"../{page}", date=date,
            )  # fmt: skip


NAMES = {
    "mirst_dm": ("MIRST", "drop-max"), "rst_dm": ("RST", "drop-max"), "base_dm": ("Standard", "drop-max"),
    "mirst_mp": ("MIRST", "max-pool"), "dual_dm": ("Dual", "drop-max"), "arfl_dm": ("ARFL", "drop-max"),
    "arfl": ("ARFL", ""), "dual": ("Dual", ""), "label_aware": ("ARFL", "correlation: label_aware"),
    "clean": ("Standard", ""), "ima_d1": ("IMA", "delta: 1"), "ima_d2": ("IMA", "delta: 2"),
    "ima_d4": ("IMA", "delta: 4"),
}  # fmt: skip
BUSI, MIAS = "L-inf 5/255, box [0, 1]", "L-inf {}, box [0, 1]"
BUNDLES: dict[str, tuple[str, str, str, dict[str, tuple[str, str]]]] = {
    "breast_ultrasound_mirst_dm": (
        "BUSI ultrasound, folds", "ResNet-18, a quarter of the channels, 96 pixels", "balanced accuracy",
        {"paper_fgsm": (BUSI, "FGSM"), "paper_pgd": (BUSI, "PGD-20"), "paper_cw": (BUSI, "CW, the paper's steps"),
         "full_cw": (BUSI, "CW, 100 steps")},
    ),
    "mammography_arfl": (
        "mini-MIAS mammograms, folds", "VGG16-BN, a quarter of the channels, 64 pixels", "AUC of patients",
        {"pgd7_linf_1e-4": (MIAS.format("1e-4"), "PGD-7"), "pgd20_linf_1e-3": (MIAS.format("1e-3"), "PGD-20"),
         "pgd20_linf_1e-2": (MIAS.format("1e-2"), "PGD-20")},
    ),
    "covid_ct_ima": (
        "COVID-19 CT slices, 400 test images", "Instance-norm ResNet-18, a quarter of the channels, 96 pixels",
        "accuracy",
        {**{f"{key}_l2_{r}": (f"L2 {r} of 224 pixels, box [0, 1]", attack)
            for key, attack in (("pgd20", "PGD-20"), ("autoattack", "AutoAttack, every fourth image"))
            for r in (1, 2, 3)},
         **{f"noise_l2_{r}": (f"L2 {r} of 224 pixels, box [0, 1]", "white noise") for r in (9, 18, 27)}},
    ),
}  # fmt: skip


def bundles() -> Iterator[Row]:
    """The three classifying bundles: means over folds or seeds."""
    content = results("bundles.json")
    for bundle, (data, model, score, attacks) in BUNDLES.items():
        key = "{}_balanced_accuracy" if score == "balanced accuracy" else "{}"
        for row, figures in content["figures"][bundle].items():
            method, settings = NAMES[row.removesuffix("_autoattack")]
            for stage, (radius, attack) in attacks.items():
                if stage not in figures:
                    continue
                found = figures[key.format(stage)]
                yield Row(
                    board=Board(data, model, radius, attack, score), method=method, settings=settings,
                    clean=100 * mean(figures[key.format("clean")]), robust=100 * mean(found), runs=len(found),
                    verdict="not fully checked" if row == "ima_d2" else "",  # as docs/results/bundles.md says
                    **_constant(100 * mean(figures["clean_balanced_accuracy"]) < CONSTANT, SAME_CLASS),
                    command=f"python benchmarks/bundles.py run DATA WORK --only {bundle}",
                    source="results/bundles.json", date=content["about"]["date"],
                )  # fmt: skip


def _constant(constant: bool, note: str) -> dict[str, Any]:
    return {"ranked": False, "note": note} if constant else {}


def _listed(settings: dict[str, Any], leave: Sequence[str] = ()) -> str:
    return ", ".join(f"{key}: {value}" for key, value in settings.items() if key not in leave)


OURS = (classification, certificates, price, hippocampus, fine_tuned, segmentation_bundle, bundles)


def page(docs: Path) -> str:
    """The page with its boards as the result files and the added rows are now.

    Args:
        docs: folder with ``leaderboard.md``, and ``leaderboard`` for the added rows.

    Raises:
        InputError: a file there that is no row, or no page.
    """
    entries = [Entry.read(file) for file in sorted((docs / "leaderboard").glob("*.json"))]
    return refreshed(docs / "leaderboard.md", [row for read in OURS for row in read()], entries)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the two commands; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("page", help="write the page again")
    adding = commands.add_parser("add", help="verify somebody's evidence, and add its rows")
    adding.add_argument("report", help="folder with evidence.json beside its report")
    adding.add_argument("--data", required=True, help="name of the data set, and of the part that was measured")
    adding.add_argument("--digest", metavar="SHA256", help="digest of the evidence, as it was kept elsewhere")
    given = parser.parse_args(arguments)
    try:
        page(given.docs)  # a page that cannot be written keeps no row
        if given.command == "add":
            print(f"Kept {Entry.of(given.report, given.data, given.digest).keep(given.docs / 'leaderboard')}")
        write_whole(given.docs / "leaderboard.md", page(given.docs))
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
