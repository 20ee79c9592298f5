"""Natural variations in the evaluation: applied where they happen, kept, resumed, and told with what was not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK
import torch
from PIL import Image
from torch import Tensor

from monai_adv import InputError
from monai_adv.attacks import FGSM
from monai_adv.attacks.ensemble import Stage
from monai_adv.evaluation.described import ModelEntry
from monai_adv.evaluation.evidence.card import Card
from monai_adv.evaluation.evidence.left_open import not_tested
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.models.bundle.source import BundleSource
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.plans import Plan
from monai_adv.evaluation.records import Level, Record
from monai_adv.evaluation.report.page import write_report
from monai_adv.evaluation.report.variations import VariationFigures, variation_figures
from monai_adv.evaluation.search.plan import AttackPlan
from monai_adv.evaluation.search.runner import run_case
from monai_adv.evaluation.search.variations import checked_steps, measured, variation_entry
from monai_adv.evaluation.settings import EvaluationSettings
from monai_adv.evaluation.store import Store, read_evaluation, read_pictures, read_records
from monai_adv.threats import Threat
from monai_adv.variations import NotApplicable, Scan, steps
from nnunet_trainers.evaluation.source import NNUNetSource
from tests.evaluation.models.test_bundle_evaluation import _classification, _segmentation
from tests.evaluation.test_evaluation_store import evaluation
from tests.planted_evaluation import dice_score, folder_of, plant
from tests.tiny_evaluate import evaluate
from tests.tiny_models import classifier
from tests.tiny_models import segmenter as boxless
from tests.tiny_nnunet import write_case, write_model


def segmenter() -> Segmenter:
    """A threshold at 0.5; its images lie between 0 and 1."""
    model = boxless()
    model.box = (0.0, 1.0)
    return model


def same(scan: Scan, number: int) -> Tensor:
    return scan.voxels


def louder(scan: Scan, number: int) -> Tensor:
    return 1.3 * scan.voxels


def seen_by(model: Any, case: str) -> list[Scan]:
    scans: list[Scan] = []
    model.load_varied(case, lambda scan, number: scans.append(scan) or scan.voxels)
    return scans


# ----------------------------------------------------------------------------------------------------------- where


def test_nnunet_sees_the_change_before_its_normalisation(tmp_path: Path) -> None:
    """Z-scores hide a gain of the whole image; they do not hide a bias field."""
    files = write_case(tmp_path, name="a")
    folder = write_model(tmp_path / "model")
    model = NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr")).open()
    clean = model.load("a")
    assert torch.equal(model.load_varied("a", same).images, clean.images)
    torch.testing.assert_close(model.load_varied("a", louder).images, clean.images, rtol=0, atol=1e-4)
    shaded = model.load_varied("a", lambda scan, number: scan.voxels * torch.linspace(0.5, 1, scan.voxels.shape[-1]))
    assert float((shaded.images - clean.images).abs().max()) > 0.1
    assert np.array_equal(shaded.truth, clean.truth)
    image = SimpleITK.ReadImage(str(files.image_files[0]))
    (scan,) = seen_by(model, "a")
    np.testing.assert_array_equal(scan.voxels[0].numpy(), SimpleITK.GetArrayFromImage(image))
    assert scan.spacing == pytest.approx(image.GetSpacing()[::-1])
    with pytest.raises(InputError, match="^variations: received 'ct', allowed is mri; the channels are called MRI"):
        checked_steps(["ct"], model)
    with pytest.raises(NotApplicable, match="for this one"):
        model.load_varied("a", _never)


def _never(scan: Scan, number: int) -> Tensor:
    raise NotApplicable("not for this one")


def test_a_bundle_sees_the_change_before_its_preprocessing(tmp_path: Path) -> None:
    model = _segmentation(tmp_path / "b", 3, size=12).open()
    clean = model.load("image1.nii.gz")
    assert torch.equal(model.load_varied("image1.nii.gz", same).images, clean.images)
    varied = model.load_varied("image1.nii.gz", louder)  # of HU, which are then (HU + 100) / 400
    torch.testing.assert_close(varied.images, 1.3 * (clean.images - 0.25) + 0.25, rtol=0, atol=1e-5)
    assert torch.equal(varied.target, clean.target)
    assert varied.threat(Level("linf", 40.0, "raw")).eps == pytest.approx(0.1)
    (scan,) = seen_by(model, "image1.nii.gz")
    assert scan.spacing == (2.0, 1.0, 1.0)  # x is longest: there the slices lie
    torch.testing.assert_close(scan.voxels[0] / 400 + 0.25, clean.images[0, 0].transpose(1, 2), rtol=0, atol=1e-5)
    with pytest.raises(NotApplicable, match="not for this one"):
        model.load_varied("image1.nii.gz", _never)
    assert "before all other preprocessing" in model.varied_at


def test_a_picture_lies_in_front_of_a_bundle_as_it_is_looked_at(tmp_path: Path) -> None:
    """MONAI reads pictures with x first; rows run down all the same."""
    picture = np.arange(16 * 12, dtype=np.uint8).reshape(16, 12)
    for i in range(3):
        Image.fromarray(picture + i).save(tmp_path / f"image{i}.png")
    data = [{"image": str(tmp_path / f"image{i}.png"), "label": i} for i in range(3)]
    transforms = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "monai_adv.bundles.GreySliced", "keys": "image"},
        {"_target_": "ScaleIntensityd", "keys": "image"},
        {"_target_": "Resized", "keys": "image", "spatial_size": [16, 16]},
    ]
    dataset = {"_target_": "Dataset", "data": data, "transform": {"_target_": "Compose", "transforms": transforms}}
    folder = tmp_path / "b"
    _classification(folder, dataset=dataset)
    metadata = json.loads((folder / "configs" / "metadata.json").read_text())
    metadata["network_data_format"]["inputs"] = {"image": {"modality": "US", "channel_def": {"0": "image"}}}
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata))
    model = BundleSource(str(folder)).open()
    (case,) = model.cases
    scans = seen_by(model, case)
    np.testing.assert_array_equal(scans[1].voxels[0, 0].numpy(), picture + 1)
    assert (scans[0].limits, scans[0].spacing) == ((0.0, 255.0), None)
    assert torch.equal(model.load_varied(case, same).images, model.load(case).images)
    torch.testing.assert_close(model.load_varied(case, louder).images, model.load(case).images)  # scaled to [0, 1]
    assert {step.variation.modality for step in checked_steps(["auto"], model)} == {"ultrasound"}
    with pytest.raises(InputError, match="received 'xray', allowed is ultrasound; the channels are called US"):
        checked_steps(["xray"], model)


def test_items_from_no_file_are_varied_as_inputs_within_their_box(tmp_path: Path) -> None:
    source = _classification(tmp_path / "b")
    model = source.open()
    with pytest.raises(InputError, match="^variations: received 'network inputs without a box'"):
        checked_steps(["xray"], model)
    boxed = replace(source, box=(0.0, 1.0)).open()
    (case,) = boxed.cases
    torch.testing.assert_close(
        measured_images(boxed, case, "xray:overexposure=3"), boxed.load(case).images.square(), rtol=0, atol=1e-6
    )
    assert boxed.varied_at.startswith("the network's inputs")


def measured_images(model: Any, case: str, word: str) -> Tensor:
    images: Tensor = model.load_varied(case, steps([word], [])[0].change(lambda number: number)).images
    return images


def test_the_spacing_of_a_network_is_known_only_where_it_is_given() -> None:
    model = segmenter()
    assert seen_by(model, model.cases[0])[0].spacing is None
    plain = Segmenter("a", model.network, model.images, model.labels, model.classes, spacing=(2.0, 3.0), box=(0, 1))
    assert seen_by(plain, plain.cases[0])[0].spacing == (1.0, 2.0, 3.0)


def test_images_for_which_no_variation_exists_are_refused_before_anything_is_computed() -> None:
    with pytest.raises(InputError, match="^variations: received 'ct', allowed is variations that exist for 0.*no HU"):
        checked_steps(["ct"], segmenter())


# --------------------------------------------------------------------------------------------------- kept and resumed


def one_step(threat: Threat, classes: int) -> list[Stage]:
    return [Stage("FGSM", FGSM(threat))]


SETTINGS = EvaluationSettings(
    (Level("linf", 0.01),), Plan.of(one_step), variations=("xray:overexposure=1,3", "xray:blur=2", "xray:jpeg=4")
)


def run_all(folder: Path, model: Any, settings: EvaluationSettings = SETTINGS) -> list[Record]:
    entry = ModelEntry(
        name=model.name, kind=model.kind, classes=tuple(model.classes), space="", unit="", cases=tuple(model.cases),
        problems=(), stages={}, corruptions=tuple(map(variation_entry, steps(settings.variations, []))),
    )  # fmt: skip
    store = Store.open(folder, evaluation(models=(entry,)))
    plan = AttackPlan(model.kind, len(model.classes), settings)
    for case in model.cases:
        assert run_case(model, case, plan, store)
    return [replace(r, seconds=0.0) for r in read_records(folder) if r.level]


def test_each_case_is_scored_under_each_variation(tmp_path: Path) -> None:
    model = segmenter()
    records = run_all(tmp_path, model)
    assert [(r.attack, r.level) for r in records if r.case == "0"] == [
        ("corruption:xray:overexposure", "1"), ("corruption:xray:overexposure", "3"), ("corruption:xray:blur", "2"),
        ("corruption:xray:jpeg", "4"),
    ]  # fmt: skip
    case = model.load("1")
    found = next(r for r in records if r.case == "1" and r.level == "3")
    assert found.own == tuple(case.scores(case.images**2))
    assert found.settings["level"] == "γ 2"
    assert found.settings["at"] == model.varied_at
    (picture,) = read_pictures(tmp_path, model.name, "0", "3.corruption:xray:overexposure")
    np.testing.assert_allclose(np.square(picture.clean), picture.attacked, atol=1e-6)
    assert not read_pictures(tmp_path, model.name, "1", "3.corruption:xray:overexposure")


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    """After an interruption: the same records, and only those that were missing are made."""
    whole = run_all(tmp_path / "whole", segmenter())
    model = segmenter()
    run_all(tmp_path / "again", model)
    for record in (tmp_path / "again" / "records").rglob("2.corruption*"):
        record.unlink()
    changed = []
    load = model.load_varied
    model.load_varied = lambda case, change: changed.append(case) or load(case, change)  # type: ignore[method-assign]
    assert run_all(tmp_path / "again", model) == whole
    assert changed == list(model.cases)


def test_a_draw_depends_on_seed_and_case_alone(tmp_path: Path) -> None:
    step = steps(["ultrasound:speckle=2"], [])[0]
    model = classifier()
    images = {}
    for seed, case in ((0, 0), (0, 0), (1, 0), (0, 1)):
        _, (picture,) = measured(model, model.cases[case], step, seed)
        images.setdefault((seed, case), []).append(picture.attacked)
    np.testing.assert_array_equal(*images[0, 0])
    assert not np.array_equal(images[0, 0][0], images[1, 0][0])
    assert not np.array_equal(images[0, 0][0], images[0, 1][0])


def test_where_a_variation_does_not_exist_the_reason_is_kept(tmp_path: Path) -> None:
    record, pictures = measured(segmenter(), "0", steps(["mri:motion=1"], [])[0], 0)
    assert (record.own, record.forward, pictures) == ((), 0, [])
    assert record.settings["not applicable"] == "the size of its voxels in mm is not known"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--variations", "xray:jpeg=4", "xray:blur=1", "--cases", "2", "--box", "0", "1", "-y")
    assert evaluate(tmp_path / "a", *words, models=["segmenter"]) == 0
    kept = read_evaluation(tmp_path / "a")
    assert kept.settings.variations == ("xray:jpeg=4", "xray:blur=1")
    assert "variations:\n- xray:jpeg=4\n- xray:blur=1\n" in kept.run_file
    made = {(r.attack, r.level, len(r.own)) for r in read_records(tmp_path / "a") if r.attack.startswith("corruption")}
    assert made == {("corruption:xray:jpeg", "4", 1), ("corruption:xray:blur", "1", 1)}
    assert evaluate(tmp_path / "b", "--variations", "xray:blurr", "-y", models=["segmenter"]) == 2
    assert (
        "variations: received 'xray:blurr', allowed is a variation of xray; did you mean 'blur'?"
        in (capsys.readouterr().err.splitlines()[-1])
    )
    assert not (tmp_path / "b").exists()


# -------------------------------------------------------------------------------------------------------------- told


def planted(folder: Path) -> Path:
    """Motion keeps half of Dice 0.8, noise three quarters of the 0.7 of the two patients that have it."""
    records = plant("m", [dice_score("a", 0.6), dice_score("b", 0.8), dice_score("c", 1.0)], {})
    told = {"meaning": "what it is", "source": "a paper", "at": "the files"}
    for case, clean in (("a", 0.6), ("b", 0.8), ("c", 1.0)):
        half = (dice_score(case, clean / 2),)
        records.append(Record("m", case, "2", "corruption:mri:motion", half, half, settings={**told, "level": "2 mm"}))
        some = (dice_score(case, 0.75 * clean),) if case != "c" else ()
        why = {} if some else {"not applicable": "no signal"}
        noise = Record(
            "m", case, "1", "corruption:mri:rician_noise", some, some, settings={**told, "level": "30 dB", **why}
        )
        records += [
            noise,
            Record(
                "m",
                case,
                "1",
                "corruption:mri:spike",
                (),
                (),
                settings={**told, "level": "1", **why, "not applicable": "flat"},
            ),
        ]
    return folder_of(folder, records)


def test_the_variation_that_costs_most_comes_first_with_the_clean_score_of_the_same_cases(tmp_path: Path) -> None:
    model = gather(planted(tmp_path)).models[0]
    found = model.variations
    assert found is not None
    assert model.corruptions == {}
    assert (found.modality, found.at, found.columns) == ("MRI", "the files", [1, 2])
    motion, noise = found.rows
    assert (motion.name, motion.lowest) == ("motion", pytest.approx(0.5))
    assert noise.strengths[0].summary.count == 2
    assert noise.strengths[0].clean == pytest.approx(0.7)
    assert noise.strengths[0].kept == pytest.approx(0.75)
    assert noise.missing == {"no signal": 1}
    untested = dict(found.untested)
    assert untested["spike"] == "flat"
    assert untested["bias field"] == "not asked for"
    assert "the label would be wrong" in untested["distortion by gradients or susceptibility"]


def test_what_was_not_tested_is_named_and_what_was_is_on_the_card(tmp_path: Path) -> None:
    folder = planted(tmp_path)
    said = [each.sentence for each in not_tested(gather(folder))]
    assert "Natural variation of MRI not tested: bias field (not asked for)." in said
    assert "Natural variation of MRI not tested: spike (flat)." in said
    assert not any("motion" in sentence for sentence in said)
    assert len(set(said)) == len(said)
    card = Card(folder, gather(folder), gather(folder).models[0]).section()
    assert "| motion, 2 mm | 40.0 |" in card
    assert "Artefacts" not in card


def test_the_page_tells_what_was_tested_and_what_was_not(tmp_path: Path) -> None:
    folder = planted(tmp_path)
    text = write_report(folder).read_text(encoding="utf-8")
    part = text[text.index('id="variations"') : text.index('id="threat"')]
    assert part.index("motion") < part.index("rician noise")
    assert "keeps 50.0" in part
    assert "2 of 3" in part
    assert '<td class="text">yes: 2 mm</td>' in part
    assert "no: not asked for" in part
    assert json.loads((folder / "results.json").read_text())["models"][0]["variations"]["modality"] == "MRI"
    figures = variation_figures(folder, gather(folder))["m"]
    assert isinstance(figures, VariationFigures)
    assert figures.curve is not None
    assert figures.curve.startswith(b"\x89PNG")
    assert figures.pictures is None
