"""Certificates of whatever the evaluation opens: cases, volumes, a folder to go on with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from scipy import stats
from torch import nn

import monai_adv
from monai_adv import InputError
from monai_adv.certificates import Certification, certify_labels
from monai_adv.cli import main
from monai_adv.evaluation.certified_outcome import Certificates
from monai_adv.evaluation.certify.kept import Proven, read_certified
from monai_adv.evaluation.evidence.document import document
from monai_adv.evaluation.evidence.purpose import Purpose
from monai_adv.evaluation.evidence.verify import against, verify
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.frame_columns import COLUMNS
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.protocol import LiveSource
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.run.certify import certify_models
from monai_adv.evaluation.store import Store
from monai_adv.metrics.statistics import bootstrap
from nnunet_trainers.evaluation.arguments import source_at
from tests import tiny_models
from tests.linear_classifier import problem
from tests.tiny_nnunet import write_case, write_model
from tests.voxel_networks import Sign

SETTINGS = Certification(sigma=0.5, n0=20, n=200, alpha=0.01)


def _classifier(name: str = "linear") -> LiveSource:
    network, images, labels = problem(2, (1, 3, 3), count=6)
    labels[0] = 1 - labels[0]
    return LiveSource(Classifier(name, network, images, labels, ["a", "b"]))


def _segmenter(count: int = 2) -> LiveSource:
    torch.manual_seed(0)
    labels = [torch.zeros(6, 6, dtype=torch.long) for _ in range(count)]
    for one in labels:
        one[2:5, 2:5] = 1
    images = [(4 * one - 2.0)[None] + 0.5 * torch.randn(1, 6, 6) for one in labels]
    return LiveSource(Segmenter("sign", Sign(), images, labels, ["lesion"]))


def test_a_classifier_image_by_image() -> None:
    found = certify_models([_classifier()], SETTINGS)
    assert len(found.cases) == 6
    assert found.cases[0].score == 0.0  # wrong
    network, images, labels = problem(2, (1, 3, 3), count=6)
    distance = network.distances(images, labels, "l2").amin(1)
    assert all(c.radius <= d + 1e-9 for c, d in zip(found.cases, distance.tolist(), strict=True))
    right = [c for c in found.cases if c.score]
    assert found.at(0.0) == len(right) / 6
    assert found.at(max(c.radius for c in right)) == pytest.approx(1 / 6)
    assert found.at(1e9) == 0


def test_a_frame_has_the_columns_of_the_evaluations() -> None:
    frame = certify_models([_segmenter()], SETTINGS).frame()
    assert list(frame.columns) == list(COLUMNS)
    rows = frame[frame.case == "0"].set_index("measure").value
    radius = 0.5 * stats.norm.ppf(0.75)
    assert rows["radius rms"] == pytest.approx(radius / 6)
    assert frame.eps.tolist() == pytest.approx([radius] * len(frame))
    assert 0 < rows["score"] <= rows["clean"] <= 1
    assert rows["score"] == rows["dice lesion"]


def test_the_slices_of_a_2d_nnunet_are_one_volume(tmp_path: Path) -> None:
    """Voxels kept, added and there are counted over the slices before the Dice is taken."""
    folder = write_model(tmp_path / "model")
    write_case(tmp_path)
    source = _nnunet(folder, tmp_path)
    [found] = certify_models([source], Certification(sigma=0.1, n0=5, n=40, alpha=0.2)).cases
    case = source.open().load(found.case)
    assert len(case.images) > 1
    assert found.radius == pytest.approx(0.1 * stats.norm.ppf(0.75))
    assert found.voxels == case.images[0].numel()
    assert found.inputs == len(case.images)
    said = repr(Certificates("segmentation", SETTINGS, (found,)))
    assert "under every change of each slice up to L2 0.0674 (RMS " in said
    assert 0 <= found.score <= found.clean <= 1 or found.score != found.score


def _nnunet(folder: Path, data: Path) -> Any:
    return source_at(
        folder, str(data / "imagesTr"), str(data / "labelsTr"), device="cpu", box=None, name="tiny", options={}
    )


def test_what_is_finished_is_not_done_again(tmp_path: Path) -> None:
    calls: list[int] = []

    class Counting(Sign):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append(len(x))
            return super().forward(x)

    def source(count: int) -> LiveSource:
        made = _segmenter()
        made.model.network = Counting().eval()
        return made

    folder = tmp_path / "certificates"
    first = certify_models([source(2)], SETTINGS, folder)
    made = len(calls)
    assert made > 0
    again = certify_models([source(2)], SETTINGS, folder)
    assert sum(calls[made:]) == 2  # by which the model is told from others
    assert again.cases == first.cases
    with pytest.raises(
        InputError, match="holds another evaluation; it differs in settings.certify.n: 200 there, 300 now"
    ):
        certify_models([source(2)], Certification(sigma=0.5, n0=20, n=300, alpha=0.01), folder)
    file = next((folder / "certificates" / "sign").glob("*.json"))
    content = json.loads(file.read_text())
    content["cases"][0]["score"] = 0.123
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="its checksum does not fit.* delete it"):
        certify_models([source(2)], SETTINGS, folder)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sigma": 0.6}, "settings.certify.sigma: 0.5 there, 0.6 now"),
        ({"n0": 21}, "settings.certify.n0: 20 there, 21 now"),
        ({"alpha": 0.02}, "settings.certify.alpha: 0.01 there, 0.02 now"),
        ({"tau": 0.8}, "settings.certify.tau: 0.75 there, 0.8 now"),
        ({"seed": 1}, "settings.certify.seed: 0 there, 1 now"),
    ],
)
def test_other_draws_need_another_folder(tmp_path: Path, more: dict[str, Any], said: str) -> None:
    certify_models([_segmenter(1)], SETTINGS, tmp_path / "out")
    with pytest.raises(InputError, match=said):
        certify_models([_segmenter(1)], replace(SETTINGS, **more), tmp_path / "out")


def test_images_have_noise_of_their_own_and_the_same_however_they_are_grouped() -> None:
    """Six alike, in one group, in groups of two, and the first three alone."""
    network, images, labels = problem(2, (1, 3, 3), count=6)
    given = images[:1].expand(6, -1, -1, -1), labels[:1].expand(6), ["a", "b"]
    found = [
        [
            c.radius
            for c in certify_models([LiveSource(Classifier("x", network, *given, group=g))], SETTINGS, cases=n).cases
        ]
        for g, n in ((64, None), (2, None), (64, 3))
    ]
    assert found[0] == found[1]
    assert found[0][:3] == found[2]
    assert len(set(found[0])) > 1


def test_it_says_first_what_is_certified() -> None:
    text = repr(certify_models([_segmenter()], SETTINGS))
    assert text.startswith("Certified is the smoothed model: the majority vote over copies of the input with noise")
    assert "under every change up to L2 0.337 (RMS 0.0562 per voxel)" in text
    text = repr(certify_models([_classifier()], SETTINGS))
    assert "half of the right images are certified up to L2" in text


def test_a_constant_answer_shows() -> None:
    """All certified, with the largest radius there is, and of one class never right."""
    found = certify_models([LiveSource(_constant(8))], SETTINGS)
    assert found.at(0.5) == 0.75
    assert "75.0 without an attack; no image of healthy is right; half of the right images" in repr(found)
    assert "no image" not in repr(certify_models([_classifier()], SETTINGS))


def test_sigmoids_over_label_maps_are_regions_without_the_background() -> None:
    """One class, its own logit above 0; the background channel says nothing."""
    labels = torch.zeros(5, dtype=torch.long)
    labels[2:] = 1

    class Noisy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([torch.full_like(x, 9.0), x], 1)

    source = LiveSource(Segmenter("s", Noisy(), [(4 * labels - 2.0)[None]], [labels], ["lesion"]))
    from monai_adv.tasks import SegmentationTask

    source.model.task = SegmentationTask.for_evaluation(sigmoid=True)
    [case] = certify_models([source], SETTINGS).cases
    assert case.score == case.clean == 1.0
    assert not certify_labels(Noisy(), torch.zeros(1, 1, 2), SETTINGS).labels.any()


def test_a_region_after_a_sigmoid_is_refused() -> None:
    """Every voxel would be certified as found."""
    scan, label = torch.linspace(-2, 2, 5)[None], (torch.linspace(-2, 2, 5) > 0).long()[None]
    for network, said in ((nn.Identity(), None), (nn.Sigmoid(), "outputs that are all from 0 to 1")):
        source = LiveSource(Segmenter("s", network, [scan], [label], ["lesion"], regions=True))
        if said is None:
            assert certify_models([source], SETTINGS).cases[0].clean == 1.0
        else:
            with pytest.raises(InputError, match=said):
                certify_models([source], SETTINGS)


def test_models_of_two_kinds() -> None:
    with pytest.raises(InputError, match="models: received .*one kind in one call"):
        certify_models([_classifier(), _segmenter()], SETTINGS)


# ------------------------------------------------------------------ the two doors


def test_python_and_the_command_say_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A network in memory and the same one from a factory: the same certificates, bit for bit."""
    network, images, labels = tiny_models.classifier().network, *_tiny()
    found = monai_adv.certify(network, images, labels, sigma=0.1, n0=5, n=30, name="tiny", cases=8)
    words = ["certify", "--factory", f"{tiny_models.__file__}:classifier", "--sigma", "0.1", "--n0", "5", "--n", "30"]
    words += ["--cases", "8", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert main([*words, "--dry-run"]) == 0
    assert "About 280 passes of one input" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "Certified is the smoothed model" in said
    table = pandas.read_csv(tmp_path / "out" / "certificates.csv")
    mine = found.frame()
    assert list(table.columns) == list(mine.columns)
    assert np.allclose(table.eps, mine.eps)
    assert len(mine[mine.measure == "score"]) == 8


def _tiny() -> tuple[torch.Tensor, torch.Tensor]:
    model = tiny_models.classifier()
    return model.images, model.labels


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sigma", "0"], "sigma: received 0.0, allowed is a finite number > 0"),
        (["--sigma", "0.1", "--n", "5"], "n: received 5, allowed is at least 10"),
        (["--sigma", "0.1", "--alpha", "2"], "alpha: received 2.0"),
        (["--sigma", "0.1", "--cases", "nobody"], "cases: received nobody"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    factory = ["--factory", f"{tiny_models.__file__}:classifier", "--device", "cpu"]
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "out", tmp_path / "empty"):
        assert main(["certify", *factory, *words, "-o", str(folder)]) == 2
        assert message in capsys.readouterr().err.splitlines()[-1].replace("'", "")
        assert not folder.exists() or not any(folder.iterdir())  # which the corrected command would not fit


def test_a_volume_that_is_too_large_for_the_draws_is_a_problem_of_its_own(tmp_path: Path) -> None:
    """16 voxels need 34 draws, 1024 need 49; if the first does not fit either, nothing is written."""
    labels = [torch.zeros(size, size, dtype=torch.long) for size in (4, 32)]
    for one in labels:
        one[1:3, 1:3] = 1
    model = Segmenter("sign", Sign(), [(4.0 * one - 2)[None] for one in labels], labels, ["lesion"])
    settings = Certification(sigma=0.5, n0=5, n=40)
    found = certify_models([LiveSource(model)], settings, tmp_path / "out")
    assert [case.case for case in found.cases] == ["0"]
    assert found.problems[0][:2] == ("sign", "1")
    assert "at least 49" in found.problems[0][2]
    with pytest.raises(InputError, match="n: received 5, allowed is at least"):
        certify_models([LiveSource(model)], Certification(sigma=0.5, n=5), tmp_path / "none")
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------ for a file


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight images, certified by the command and nothing else."""
    folder = tmp_path_factory.mktemp("filed")
    shutil.copy(tiny_models.__file__, folder / "mine.py")
    assert main(_command(folder)) == 0
    return folder


def _command(folder: Path) -> list[str]:
    return ["certify", "--factory", f"{folder / 'mine.py'}:classifier", "--sigma", "0.1", "--n0", "5", "--n", "30",
            "--cases", "8", "--device", "cpu", "-o", str(folder / "out")]  # fmt: skip


def _evidence(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "out" / "evidence.json").read_text())
    return content


def test_a_certified_run_can_be_filed(filed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Untouched everything matches but what came from memory; the digest on the screen is the file's."""
    digest = _evidence(filed)["digest"]
    assert main(_command(filed)) == 0  # nothing is left to do, and the same is said
    assert _evidence(filed)["digest"] != digest  # the second session is in it
    assert _evidence(filed)["digest"] in capsys.readouterr().out
    assert main(["verify", str(filed / "out")]) == 2
    told = capsys.readouterr().out
    assert "DIFFERS" not in told
    assert [line for line in told.splitlines() if line.startswith("not checked")] == [
        "not checked tiny, weights and data: some came from memory; their hash is in the evidence"
    ]
    for line in ("report, certificates.csv", "records", "tiny, figures, from the records", "code of monai-adv"):
        assert f"matches     {line}\n" in told
    content = _evidence(filed)
    assert content["measurement"]["settings"]["certify"]["sigma"] == 0.1
    assert content["measurement"]["command"].startswith("monai-adv certify --factory ")
    assert [session["records"] for session in content["measurement"]["sessions"]][:2] == [0, 1]


def test_its_figures_are_those_of_the_certificates_with_intervals(filed: Path) -> None:
    """Of 30 draws at alpha 0.001 the radius is at most 0.1 * Phi^-1(0.001 ** (1 / 30)) = 0.0822: 0 and half a sigma."""
    table = pandas.read_csv(filed / "out" / "certificates.csv")
    radii, scores = (table[table.measure == word] for word in ("radius rms", "score"))
    (model,) = _evidence(filed)["models"]
    rows = {(row["attack"], row["level"], row["measure"]): row for row in model["figures"] if row["class"] == "all"}
    assert set(rows) == {
        ("clean", "", "accuracy"), ("certificate", "", "certified lower bound"),
        ("certificate", "l2-0.05", "certified lower bound"), ("certificate", "", "share abstained"),
    }  # fmt: skip
    assert len(radii) == len(scores) == 8
    right = int(((scores.value == 1) & (scores.eps >= 0.05)).sum())
    row = rows["certificate", "l2-0.05", "certified lower bound"]
    assert (row["norm"], row["eps"], row["unit"], row["count"]) == ("l2", 0.05, "norm", 8)
    assert row["value"] == right / 8
    expected = stats.binomtest(right, 8).proportion_ci(method="wilson")
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    by_class = {row["class"]: row for row in model["figures"] if row["level"] == "" and row["class"] != "all"}
    for name, each in by_class.items():
        mine = table[table.measure == f"sensitivity {name}"]
        assert each["count"] == len(mine)
        assert each["value"] is None if mine.empty else each["value"] == pytest.approx(mine.value.mean())
    assert sum(row["count"] for row in by_class.values()) == 8
    assert model["robustness"] == "certified, not attacked"
    assert model["trust"] == {"word": "not enough measured", "reasons": ["8 images of at least 50"]}
    assert [check["outcome"] for check in model["checks"]] == ["passed"]


def test_it_says_that_no_attack_was_run(filed: Path) -> None:
    content = _evidence(filed)
    told = {each["topic"]: each["sentence"] for each in content["not_tested"]}
    assert told["attacks"].startswith("No attack was run.")
    assert told["larger changes"] == "Nothing is proven beyond the radii among the figures."
    assert told["the network itself"].startswith("The figures are of the smoothed models.")
    assert "lower bound" not in told
    assert not any("attacks are" in each for each in content["deviations"])
    assert "Not all cases were measured, only the first 8." in content["deviations"]


def _edit(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _proven(folder: Path) -> Path:
    return next((folder / "out" / "certificates").rglob("*.json"))


def _sealed(folder: Path) -> None:
    """As somebody would who knows this program."""
    store = Store(folder / "out")
    content = store.read(_proven(folder), Proven)
    store.write(_proven(folder), Proven((replace(content.cases[0], radius=9.0, score=1.0), *content.cases[1:])))


TAMPERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "the table": (
        lambda f: (f / "out" / "certificates.csv").write_text("x"), "report, certificates.csv: it was changed"),
    "a certificate": (
        lambda f: _edit(_proven(f), lambda c: c["cases"][0].update(radius=9.0)), "figures, from the records: "),
    "a certificate with its seal": (_sealed, "records: files were changed"),
    "a certificate gone": (lambda f: _proven(f).unlink(), "records: files were changed"),
    "the weights": (lambda f: (f / "mine.py").write_text("x"), "mine.py: its content was changed"),
    "a figure": (
        lambda f: _edit(f / "out" / "evidence.json", lambda c: c["models"][0]["figures"][0].update(value=0.999)),
        "evidence.json, by its digest: it was changed"),
    "the draws": (
        lambda f: _edit(f / "out" / "evaluation.json", lambda c: c["settings"]["certify"].update(n=9000)),
        "figures, from the records: "),
}  # fmt: skip


@pytest.mark.parametrize(("tamper", "said"), TAMPERED.values(), ids=TAMPERED.keys())
def test_tampering_is_found(filed: Path, tmp_path: Path, tamper: Callable[[Path], object], said: str) -> None:
    shutil.copytree(filed, folder := tmp_path / "copy")
    marks = json.loads((folder / "out" / "files.json").read_text())  # of the files where they were measured
    assert any("mine.py" in path for path in marks["tiny"])
    kept = (filed / "mine.py").read_bytes()
    tamper(folder if said.partition(":")[0] != "mine.py" else filed)
    try:
        lines = [line for line in verify(folder / "out") if line.outcome == "DIFFERS"]
    finally:
        (filed / "mine.py").write_bytes(kept)
    assert any(said in str(line) for line in lines), lines


def test_a_changed_figure_is_named_even_with_a_new_digest(filed: Path) -> None:
    content = _evidence(filed)
    again = document(filed / "out", gather(filed / "out", attacked=False), content["written"], {})
    assert all(line.outcome == "matches" for line in against(content, again))
    content["models"][0]["figures"][1]["value"] += 0.125
    (line,) = [line for line in against(content, again) if line.outcome == "DIFFERS"]
    assert line.what == "tiny, figures, from the records"
    assert line.why.startswith("[1].value is ")


def test_a_certificate_of_another_folder_is_refused(filed: Path, tmp_path: Path) -> None:
    """Of the same model and case, but of another sigma."""
    shutil.copytree(filed, folder := tmp_path / "copy")
    words = [*_command(folder)[:-1], str(folder / "other"), "--sigma", "0.2"]
    assert main(words) == 0
    shutil.copy(next((folder / "other" / "certificates").rglob("*.json")), _proven(folder))
    with pytest.raises(InputError, match="copied from elsewhere"):
        read_certified(Store(folder / "out"), "tiny", ["images 0 to 7"])


def _constant(count: int = 60) -> Classifier:
    """Always says "ill", of which it is right in all images but two, up to ``sigma * Phi^-1(alpha ** (1 / n))``."""
    network, labels = nn.Linear(2, 2), torch.ones(count, dtype=torch.long)
    network.load_state_dict({"weight": torch.zeros(2, 2), "bias": torch.tensor([0.0, 1.0])})
    labels[:2] = 0
    return Classifier("constant", network, torch.zeros(count, 2), labels, ["healthy", "ill"])


def _criterion(**given: Any) -> dict[str, Any]:
    return {"measure": "score", "norm": "l2", "unit": "norm", "reason": "as agreed"} | given


def test_criteria_are_passed_by_proof_or_not_decided(tmp_path: Path) -> None:
    """58 of 60: Wilson's interval begins at 88.6 %; beyond the radius nothing is proven, and nothing is FAILED."""
    radius = SETTINGS.sigma * stats.norm.ppf(SETTINGS.alpha ** (1 / SETTINGS.n))
    expected = [
        (_criterion(eps=0.99 * radius, at_least=0.886), "passed"),
        (_criterion(eps=0.98 * radius, at_least=0.887), "not decided"),
        (_criterion(eps=1.01 * radius, at_least=0.1), "not decided"),
        (_criterion(eps=0.99 * radius, at_least=0.9, measure="sensitivity ill"), "passed"),
        (_criterion(eps=0.99 * radius, at_least=0.9, measure="sensitivity"), "passed"),
        (_criterion(eps=0.99 * radius, at_least=0.1, measure="sensitivity healthy"), "not decided"),
        ({"measure": "score", "at_least": 0.8, "reason": "as agreed"}, "passed"),
    ]
    purpose = Purpose.stated("Screening.", [each for each, _ in expected])
    found = certify_models([LiveSource(_constant())], SETTINGS, tmp_path / "out", purpose=purpose)
    outcomes = [outcome for _, outcome in expected]
    assert [each.outcome for each in found.decisions["constant"]] == outcomes
    assert found.decisions["constant"][2].measured.value == 0
    assert "constant: acceptance criteria not decided (4 passed, 3 not decided)" in repr(found)
    content = json.loads((tmp_path / "out" / "evidence.json").read_text())
    assert content["intended_use"] == "Screening."
    assert [each["outcome"] for each in content["models"][0]["acceptance"]] == outcomes
    assert "DIFFERS" not in {line.outcome for line in verify(tmp_path / "out")}
    again = certify_models([LiveSource(_constant())], SETTINGS, tmp_path / "out")  # as stated before
    assert again.decisions == found.decisions
    assert certify_models([LiveSource(_constant())], SETTINGS).decisions == {"constant": ()}


def test_the_dice_of_volumes_reaches_a_criterion_within_the_radius_alone() -> None:
    settings = replace(SETTINGS, sigma=1.5)
    radius = settings.sigma * stats.norm.ppf(0.75)
    found = certify_models([_segmenter(7)], settings)
    interval = bootstrap([case.score for case in found.cases], seed=settings.seed)
    assert 0 < interval.low < interval.high
    given = [(0.99 * radius, interval.low), (0.98 * radius, interval.low + 1e-6), (1.01 * radius, 0.0)]
    criteria = [_criterion(eps=eps, at_least=low, measure=m) for m in ("score", "dice lesion") for eps, low in given]
    decided = certify_models([_segmenter(7)], settings, purpose=Purpose.stated(None, criteria)).decisions["sign"]
    assert [each.outcome for each in decided] == 2 * ["passed", "not decided", "not decided"]


@pytest.mark.parametrize(
    "given",
    [
        {"unit": "rms", "eps": 0.1},
        {"norm": "linf", "eps": 0.1},
        {"measure": "share kept", "eps": 0.1},
        {"measure": "specificity", "eps": 0.1},
    ],
)
def test_criteria_that_no_certificate_can_decide(tmp_path: Path, given: dict[str, Any]) -> None:
    purpose = Purpose.stated(None, [_criterion(at_least=0.5, **given)])
    with pytest.raises(
        InputError, match="acceptance: .* norm: l2, eps and unit: norm; a certificate proves nothing else"
    ):
        certify_models([LiveSource(_constant())], SETTINGS, tmp_path / "out", purpose=purpose)
    assert not (tmp_path / "out").exists()


def test_a_run_file_states_the_criteria(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = {"factory": [f"{tiny_models.__file__}:classifier"], "sigma": 0.1, "n0": 5, "n": 30, "cases": 8,
             "device": "cpu", "output": str(tmp_path / "out"), "intended_use": "Telling a from b.",
             "acceptance": [_criterion(eps=9.0, at_least=0.5)]}  # fmt: skip
    (tmp_path / "run.yaml").write_text(json.dumps(asked))  # JSON is YAML
    assert main(["certify", "--run", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr().out
    assert "tiny: acceptance criteria not decided (1 not decided)" in said
    assert "score at least 50 %, l2-9: not decided (the certificate does not reach it" in said


def test_what_needs_attacks_says_that_there_are_none(
    filed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = ["card", "-o", str(tmp_path / "README.md"), "--dataset", "eight images"]
    for words in (["report"], ["compare", str(filed / "out")], card):
        assert main([*words, str(filed / "out")]) == 2
        assert "holds certificates and no attack" in capsys.readouterr().err


def test_certificates_of_volumes_are_filed_from_python(tmp_path: Path) -> None:
    """Per class and joint, each with an interval over the patients; the radius is sigma * Phi^-1(tau)."""
    source, settings = _segmenter(7), replace(SETTINGS, sigma=1.5)
    certify_models([source], settings, tmp_path / "out")
    (model,) = json.loads((tmp_path / "out" / "evidence.json").read_text())["models"]
    radius = 1.5 * stats.norm.ppf(0.75)
    rows = [row for row in model["figures"] if row["measure"] == "certified lower bound"]
    assert [row["class"] for row in rows] == ["all", "lesion"]
    assert [row["eps"] for row in rows] == pytest.approx([radius, radius])
    found = certify_models([source], settings, tmp_path / "out")
    assert rows[0]["value"] == pytest.approx(np.mean([case.score for case in found.cases]))
    assert rows[0]["low"] <= rows[0]["value"] <= rows[0]["high"]
    assert model["trust"]["word"] == "reliable"
    assert {line.outcome for line in verify(tmp_path / "out")} == {"matches", "not checked"}


@pytest.mark.parametrize(
    ("given", "said"), [((), "images: received None"), (("{}/imagesTr",), "labels: received None")]
)
def test_a_trained_nnunet_needs_its_files(tmp_path: Path, given: tuple[str, ...], said: str) -> None:
    folder = write_model(tmp_path / "model")
    write_case(tmp_path)
    with pytest.raises(
        InputError, match=f"{said}, allowed is the folder of the .*, in its raw layout; such as nnUNet_raw"
    ):
        monai_adv.certify(folder, *(word.format(tmp_path) for word in given), sigma=0.1)
