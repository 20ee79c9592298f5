"""What natural variations cost four of the models that the bundle robust_organ_segmentation holds, on real patients.

    python benchmarks/variations.py DATA --cases 12 --output docs/results     # DATA holds Dataset004_Hippocampus

Variations alone, as `monai-adv evaluate --variations mri` measures them beside its attacks; the first validation cases
of fold 0, which neither host's training has seen.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from monai_adv.evaluation.figures.variation_rows import inventory
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.protocol import Picture
from monai_adv.evaluation.records import CLEAN, Record
from monai_adv.evaluation.report.variations import variation_pictures
from monai_adv.evaluation.search.variations import measured, steps_of
from monai_adv.files import write_whole
from monai_adv.metrics.statistics import Scores
from nnunet_trainers.evaluation.source import NNUNetSource

BUNDLE = Path(__file__).parents[1] / "bundles" / "robust_organ_segmentation"
NAMES = {
    "monai_clean": "MONAI 3D, plain", "monai_robust": "MONAI 3D, robust",
    "nnunet_clean": "nnU-Net 2D, plain", "nnunet_robust": "nnU-Net 2D, robust",
}  # fmt: skip


def models(data: Path, count: int) -> Iterator[tuple[str, Any]]:
    """The four, each with the first validation cases of fold 0."""
    override = (f"dataset_dir={data}",)
    opened: Any = BundleSource(str(BUNDLE), overrides=override).open()
    cases = tuple(case.removesuffix("_0000.nii.gz") for case in opened.cases[:count])
    yield "monai_robust", opened
    yield "monai_clean", BundleSource(str(BUNDLE), overrides=override, weights="models/model_clean.pt").open()
    for name in ("nnunet_clean", "nnunet_robust"):
        folder = BUNDLE / "models" / name
        yield name, NNUNetSource(str(folder), str(data / "imagesTr"), str(data / "labelsTr"), cases=cases).open()


def main() -> None:
    """Measure, print, and write ``variations.json`` and the picture of one patient."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    results: dict[str, Any] = {"cases": args.cases, "seed": args.seed, "models": {}}
    for name, model in models(args.data / "Dataset004_Hippocampus", args.cases):
        records: list[Record] = []
        drawn: dict[str, dict[int, Picture]] = {}
        clean: Scores = {}
        for case in model.cases[: args.cases]:
            loaded = model.load(case)
            scores = tuple(loaded.scores(loaded.images))
            clean |= {(case, score.case): score for score in scores}
            records.append(Record(model.name, case, "", CLEAN, scores, scores))
            for step in steps_of(["auto"], model):
                record, pictures = measured(model, case, step, args.seed)
                records.append(record)
                if case == model.cases[0]:
                    drawn.setdefault(record.attack, {})[step.severity] = pictures[0]
        found = inventory(records, model.name, clean, "segmentation", args.seed)
        assert found is not None
        results["models"][name] = {
            row.name: {s.level: round(100 * s.summary.mean, 2) for s in row.strengths} for row in found.rows
        } | {"clean": round(100 * found.rows[0].strengths[0].clean, 2), "changed": found.at}
        print(NAMES[name], json.dumps(results["models"][name], ensure_ascii=False, indent=1))
        if name == "monai_clean":
            picture = variation_pictures([(row, drawn[row.attack]) for row in found.rows])
            write_whole(args.output.parent / "images" / "variations.png", picture)
    write_whole(args.output / "variations.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
