"""A smoothed model attacked and certified: closed forms of a linear one, the page, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from scipy import stats
from torch import nn

import monai_adv
from monai_adv import InputError
from monai_adv.certificates import SmoothedModel, Smoothing
from monai_adv.certificates.bounds import chance_of_losing
from monai_adv.cli import main
from monai_adv.evaluation.certify.kept import FOLDER, Judged, keep
from monai_adv.evaluation.evidence.certified import proof, proven_scores
from monai_adv.evaluation.evidence.leaderboard import Entry
from monai_adv.evaluation.frame_columns import COLUMNS
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.models.segmenter import Segmenter
from monai_adv.evaluation.models.smoothed import SmoothedVersion
from monai_adv.evaluation.outcome import Results
from monai_adv.evaluation.report.bounds import bounds_of, told
from monai_adv.evaluation.store import Store, read_records
from nnunet_trainers.evaluation.arguments import source_at
from tests import tiny_models
from tests.linear_classifier import problem
from tests.tiny_nnunet import write_case, write_model
from tests.voxel_networks import Sign

SMOOTH = Smoothing(0.5, n0=20, n=400, alpha=0.01, draws=40)
EPS = (0.1, 0.4, 0.9)


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Ten images, the first of them with a wrong label."""
    network, images, labels = problem(2, (1, 3, 3), count=10)
    labels[0] = 1 - labels[0]
    folder = tmp_path_factory.mktemp("linear") / "report"
    return monai_adv.evaluate(
        network, images, labels, eps=EPS, unit="norm", attacks="quick", folder=folder, name="linear", smooth=SMOOTH
    )


def test_the_truth_lies_between(linear: Results) -> None:
    """Of a linear classifier the smoothed one is the same, and its robust accuracy that of the distances."""
    network, images, labels = problem(2, (1, 3, 3), count=10)
    distance = network.distances(images, labels, "l2").amin(1)
    (model,) = linear.bounds
    assert model.name == "linear, smoothed"
    for case in model.cases:
        number = int(case.certified.case)
        assert case.certified.radius <= distance[number]
        assert case.certified.score == float(number > 0 and case.certified.radius > 0)
        for found in case.attacked.values():
            true = float(number > 0 and distance[number] > found.radius)
            assert found.certified <= true
            near = abs(distance[number] - found.radius) < 0.1
            assert near or found.score == true
            assert not found.beaten
    certified = [row.certified for row in model.rows]
    assert certified == sorted(certified, reverse=True)
    assert certified[0] > certified[-1]
    assert [row.radius for row in model.rows] == ["0", "0.1", "0.4", "0.9"]


def test_python_has_the_certificates(linear: Results) -> None:
    certificates = linear.certificates
    assert list(certificates.frame().columns) == list(COLUMNS)
    assert len(certificates.cases) == 10
    assert certificates.at(0.4) == linear.bounds[0].rows[2].certified
    assert set(linear.frame().model) == {"linear, smoothed"}


def test_the_page_says_first_what_is_certified(linear: Results) -> None:
    page = (linear.folder / "report.html").read_text()
    section = page[page.index('id="bounds"') :]
    assert section.index("<b>What is certified is the smoothed model</b>") < 200
    assert "beaten" not in section
    table = pandas.read_csv(linear.folder / "certificates.csv")
    by_case = {str(case.certified.case): case for case in linear.bounds[0].cases}
    for row in table.to_dict("records"):
        case = by_case[str(row["case"])]
        assert row["certified_radius"] == pytest.approx(case.certified.radius)
        assert row["attacked l2-0.4"] == case.attacked["l2-0.4"].score


def test_a_leaderboard_shows_both_bounds(linear: Results) -> None:
    rows = Entry.of(linear.folder, "ten images").rows
    assert [row.certified for row in rows] == [100 * row.certified for row in linear.bounds[0].rows[1:]]
    assert all(row.certified is not None and row.robust is not None and row.certified <= row.robust for row in rows)
    assert {row.note for row in rows} == {""}


def test_a_certificate_that_an_attack_beats_is_an_alarm(linear: Results) -> None:
    """As if the attacked images had all been judged wrong: well inside the radius chance cannot do that."""
    (case,) = (linear.numbers.records[0].case,)
    name, level = "linear, smoothed", "l2-0.1"
    store = Store(linear.folder)
    place = store.path(FOLDER, name, case, level)
    kept = place.read_bytes()
    given = linear.folder, linear.numbers, linear.numbers.models[0]
    assert proof(*given) == proven_scores(*given)
    assert list(proof(*given)) == ["", "l2-0.1", "l2-0.4", "l2-0.9"]
    try:
        keep(store, Judged(0.1, {str(i): 0.0 for i in range(10)}, 1), name, case, level)
        assert proof(*given) == {}  # no criterion is passed by it
        found = bounds_of(linear.folder, linear.numbers)
        certain = [c for c in found[0].cases if c.certified.score and c.certified.radius > 0.3]
        assert certain
        assert all(c.attacked[level].beaten for c in certain)
        assert any("so something is wrong" in line for line in told(found))
        page = linear.report(linear.folder.parent / "again").read_text()
        first = page.index("A certificate of linear, smoothed is beaten.")
        assert first < page.index('class="opening"') < page.index("▲ A certificate is beaten.")
        assert page.count("▲ A certificate is beaten.") == 1  # all cases in one box
        assert page.count("<li>") >= len(certain)
        place.write_text(place.read_text().replace("0.0", "1.0", 1))
        with pytest.raises(InputError, match="its checksum does not fit.* delete it"):
            bounds_of(linear.folder, linear.numbers)
    finally:
        place.write_bytes(kept)


FACTORY = """
from monai_adv.evaluation.models.classifier import Classifier
from tests.linear_classifier import problem


def model():
    network, images, labels = problem(2, (1, 3, 3), count=10)
    return Classifier("linear", network, images, labels, ["a", "b"])
"""
DRAWS = ["--n0", "20", "--n", "400", "--alpha", "0.01", "--draws", "40"]


def test_the_command_ends_with_3_where_a_certificate_is_beaten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command again, after other draws were made to call the attacked images wrong."""
    (tmp_path / "mine.py").write_text(FACTORY)
    words = ["evaluate", "--factory", f"{tmp_path / 'mine.py'}:model", "--smooth", "0.5", *DRAWS, "--norm", "l2",
             "--unit", "norm", "--eps", "0.1", "--attacks", "quick", "--device", "cpu", "-y", "-o",
             str(tmp_path / "out")]  # fmt: skip
    assert main(words) == 0
    assert "something is wrong" not in capsys.readouterr().out
    case = read_records(tmp_path / "out")[0].case
    judged = Judged(0.1, {str(i): 0.0 for i in range(10)}, 1)
    keep(Store(tmp_path / "out"), judged, "linear, smoothed", case, "l2-0.1")
    assert main(words) == 3
    assert "so something is wrong" in capsys.readouterr().out
    assert "▲ A certificate is beaten." in (tmp_path / "out" / "report.html").read_text()


def test_a_smoothed_nnunet_is_verified_from_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All matches where nothing was touched, and what was tampered with is named."""
    write_case(tmp_path)
    model, out = write_model(tmp_path / "model", (8, 12, 8)), tmp_path / "out"
    words = ["evaluate", "-m", str(model), "-i", str(tmp_path / "imagesTr"), "-gt", str(tmp_path / "labelsTr"),
             "--smooth", "1", "--n0", "2", "--n", "60", "--alpha", "0.1", "--draws", "2", "--norm", "l2", "--unit",
             "norm", "--eps", "0.1", "--attacks", "quick", "--device", "cpu", "-y", "-o", str(out)]  # fmt: skip
    assert main(words) in (0, 3)
    capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    told = capsys.readouterr().out
    assert "matches     model, smoothed, contents of 5 of 5 files" in told
    assert "DIFFERS" not in told
    assert "not checked" not in told
    (proven,) = (out / "certificates").rglob("case.json")
    for tampered, said in (
        (proven, f"DIFFERS     figures, from the records: {proven}: "),
        (tmp_path / "labelsTr" / "case.nii.gz", f"DIFFERS     model, smoothed, {tmp_path}/labelsTr/case.nii.gz: "),
        (model / "fold_0" / "checkpoint_final.pth", "checkpoint_final.pth: its content was changed"),
        (out / "certificates.csv", "DIFFERS     report, certificates.csv: it was changed"),
    ):
        kept = tampered.read_bytes()
        tampered.write_bytes(kept.replace(b'"score": ', b'"score": 0', 1) if tampered == proven else kept + b" ")
        assert main(["verify", str(out)]) == 1
        assert said in capsys.readouterr().out
        tampered.write_bytes(kept)
    assert main(["verify", str(out)]) == 0


def test_the_evidence_has_the_certified_figures(linear: Results) -> None:
    content = json.loads((linear.folder / "evidence.json").read_text())
    rows = [row for row in content["models"][0]["figures"] if row["attack"] == "certificate"]
    (model,) = linear.bounds
    assert [row["value"] for row in rows] == pytest.approx([row.certified for row in model.rows])
    assert [row["level"] for row in rows] == ["", "l2-0.1", "l2-0.4", "l2-0.9"]
    assert "lower bound" not in {each["topic"] for each in content["not_tested"]}


def test_chance_of_losing_is_that_of_a_binomial() -> None:
    """At margin 1/2 a draw is right with probability 0.6915; of 9 draws 4 or fewer must be."""
    p = stats.norm.cdf(0.5)
    expected = sum(stats.binom.pmf(k, 9, p) for k in range(5))
    assert chance_of_losing(0.5, 9) == pytest.approx(expected)
    assert chance_of_losing(0.0, 10) > 0.5  # a tie counts as lost


@pytest.mark.parametrize("size", [(16, 12), (8, 12, 8)])
def test_a_volume_of_an_nnunet_votes_through_its_window(tmp_path: Path, size: tuple[int, ...]) -> None:
    write_case(tmp_path)
    folder = write_model(tmp_path / "model", size)
    found = [str(tmp_path / name) for name in ("imagesTr", "labelsTr")]
    source: Any = source_at(folder, *found, device="cpu", box=None, name="tiny", options={})
    model = source.open()
    case = model.load("case")
    assert case.with_network(case.network).scores(case.images) == case.scores(case.images)
    version = SmoothedVersion(model, Smoothing(1.0, n0=2, n=60, alpha=0.1, draws=6))
    assert version.data_files == model.data_files != []  # so that the evidence can be verified from files
    assert version.in_files is model.in_files is True
    smoothed = version.load("case")
    assert isinstance(smoothed.network, SmoothedModel)
    assert smoothed.network.network is case.network
    assert smoothed.scores(case.images) == smoothed.scores(case.images)
    with torch.no_grad():
        assert torch.equal(smoothed.logits(case.images), smoothed.network(case.images))  # type: ignore[attr-defined]


def test_regions_vote_each_for_itself() -> None:
    labels = torch.zeros(1, 6, dtype=torch.long)
    labels[0, 3:] = 1
    network = Sign()
    model = Segmenter("regions", nn.Sequential(network, _Second()), [(4.0 * labels - 2)], [labels], ["lesion"],
                      regions=True)  # fmt: skip
    case = SmoothedVersion(model, SMOOTH).load("0")
    assert isinstance(case.network, SmoothedModel)
    assert case.network.regions
    assert [score.score for score in case.scores(case.images)] == [1.0]


class _Second(nn.Module):
    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 1:]


# ------------------------------------------------------------------ bad input


def test_a_certificate_needs_a_radius_of_l2() -> None:
    network, images, labels = problem(2, (1, 4))
    with pytest.raises(InputError, match="smooth: received 0.25, allowed is given with radii of l2"):
        monai_adv.evaluate(network, images, labels, norm="linf", eps=0.1, smooth=0.25)


def test_a_model_of_ones_own_has_to_take_another_network() -> None:
    network, images, labels = problem(2, (1, 4))
    model = Classifier("mine", network, images, labels, ["a", "b"])

    class Own(SmoothedVersion):
        def load(self, case: str) -> Any:
            return object()

    with pytest.raises(InputError, match="smooth: .* whose cases have with_network"):
        SmoothedVersion(Own(model, SMOOTH), SMOOTH).load(model.cases[0])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--smooth", "0"], "sigma: received 0.0, allowed is a finite number > 0"),
        (["--smooth", "0.1", "--n", "5"], "n: received 5, allowed is at least 10"),
        (["--smooth", "0.1", "--alpha", "1"], "alpha: received 1.0"),
        (["--smooth", "0.1", "--draws", "0"], "draws: received 0"),
        (["--smooth", "1e-6"], "sigma: received 1e-06, allowed is at least"),
        (["--draws", "7"], "--draws: received 7, allowed is given beside --smooth S"),
    ],
)
def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    """Before anything is attacked, in one sentence on the last line."""
    factory = ["--factory", f"{tiny_models.__file__}:classifier", "--device", "cpu"]
    place = ["--norm", "l2", "--unit", "norm", "--eps", "0.1", "-o", str(tmp_path / "out"), "--yes"]
    assert main(["evaluate", *factory, *words, *place]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1].replace("'", "")
    assert not (tmp_path / "out").exists()
