"""Every red flag is raised by a model made for it; honest models raise none.

The models of ``planted_models.py`` go through the command itself: attacks, probes, flags.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from monai_adv.cli import main
from monai_adv.evaluation.checks import probes
from monai_adv.evaluation.checks.flags import (
    batch,
    black_box,
    find_flags,
    inputs,
    longer,
    monotone,
    noise,
    repeat,
    unbounded,
    zero_gradients,
)
from monai_adv.evaluation.checks.probed import Consistency, ModelProbe
from monai_adv.evaluation.checks.verdict import Flag, verdict
from monai_adv.evaluation.codec import plain, typed
from monai_adv.evaluation.figures.results import gather
from monai_adv.evaluation.models.classifier import Classifier
from monai_adv.evaluation.records import Level, Record
from monai_adv.evaluation.run.parts import Parts
from monai_adv.evaluation.search.plan import Stage, stages
from monai_adv.evaluation.settings import VERSIONS
from monai_adv.metrics.score import Score
from monai_adv.threats import Threat
from tests import planted_models
from tests.planted_evaluation import FAMILIES, plant, probed

LEVELS = (Level("l2", 3.0, "norm"), Level("l2", 5.0, "norm"), Level("linf", 0.5))
FAMILY = {level.key: FAMILIES for level in LEVELS}


def _probe(model, levels, seed, cases, steps, once):
    """Of shorter attacks, in place of those of the version."""
    found = probes.probe(model, levels, seed, cases, {300: 60}.get(steps, steps), once, unbounded=15)
    return replace(found, steps=steps)


def _evaluate(folder: Path, model: str, attacks: str, *eps: str, norm: str = "l2") -> tuple[int, dict[str, Flag]]:
    """Exit code and flags of ``monai-adv evaluate``, without the page."""
    factory = f"{planted_models.__file__}:{model}"
    radii = ["--norm", norm, "--unit", "norm", "--eps", *eps]
    words = ["--factory", factory, "--attacks", attacks, *radii, "--device", "cpu", "-y"]
    parts = Parts(probe=_probe, write_page=lambda folder, figures, bounds: folder)
    code = main(["evaluate", *words, "-o", str(folder)], parts=parts)
    return code, {flag.name: flag for flag in gather(folder).models[0].flags}


@pytest.mark.parametrize(
    ("model", "attacks", "eps", "norm"),
    [
        ("honest", "standard", ["3"], "l2"),
        ("honest_segmenter", "standard", ["3"], "l2"),
        ("honest", "quick", ["0.1", "0.4"], "linf"),
        ("honest_but_sure", "quick", ["1", "3"], "l2"),
        ("honest_segmenter", "quick", ["0.1", "0.3"], "linf"),
    ],
)
def test_an_honest_model_raises_none(tmp_path, model, attacks, eps, norm):
    code, flags = _evaluate(tmp_path, model, attacks, *eps, norm=norm)
    assert code == 0
    assert {name: flag.measured for name, flag in flags.items() if flag.raised} == {}
    # Only attacks of "standard" do without gradients; a single radius cannot show a rise.
    not_run = ["black-box"] * (attacks == "quick") + ["monotone"] * (len(eps) == 1)
    assert [name for name, flag in flags.items() if flag.outcome == "not run"] == not_run
    # Two volumes, 16 images: too few, whatever the checks say.
    assert gather(tmp_path).models[0].verdict.word == "not enough measured"


@pytest.mark.parametrize(
    ("model", "attacks", "eps", "raised"),
    [
        ("quantised_input", "standard", ["3"], {"black-box", "zero-gradients"}),
        ("quantised_input_segmenter", "standard", ["3"], {"black-box", "zero-gradients"}),
        ("roughly_quantised_input", "quick", ["4"], {"noise", "zero-gradients"}),
        ("saturated_softmax", "quick", ["1", "3"], {"zero-gradients", "probabilities"}),
        ("one_sigmoid", "quick", ["1", "3"], {"probabilities"}),
        ("sigmoid_segmenter", "quick", ["1", "3"], {"probabilities"}),
        ("temperature_scaled_logits", "quick", ["1", "3"], {"zero-gradients", "longer"}),
        ("clipped_gradient", "quick", ["1", "3"], {"zero-gradients"}),
        ("randomised_layer", "quick", ["1", "3"], {"repeat"}),
        ("randomised_segmenter", "quick", ["1", "3"], {"repeat"}),
        ("batch_statistics", "quick", ["1", "3"], {"batch"}),
        ("detours", "quick", ["1", "3"], {"longer"}),
        ("guarded", "quick", ["3", "50"], {"monotone", "unbounded"}),
        ("blind", "quick", ["1", "3"], {"unbounded"}),
        ("wrong_scale", "quick", ["1", "3"], {"inputs"}),
    ],
)
def test_a_planted_model_raises_its_flag(tmp_path, model, attacks, eps, raised):
    code, flags = _evaluate(tmp_path, model, attacks, *eps)
    assert code == 3
    assert gather(tmp_path).models[0].verdict.word == "not reliable"
    found = {name for name, flag in flags.items() if flag.raised}
    assert raised <= found, {name: flags[name].measured for name in raised - found}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_the_probes_search_twice_as_long_as_the_attacks(kind, version):
    def steps(settings: Any) -> int:
        if isinstance(settings, list):
            return sum(steps(s) for s in settings)
        if not isinstance(settings, dict):
            return 0
        return settings["steps"] if "steps" in settings else max((steps(v) for v in settings.values()), default=0)

    plan = stages(kind, version, Threat("l2", 1.0, unit="norm"), 10)
    assert probes.STEPS[version] >= 2 * max(steps(stage.settings()) for stage in plan)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("kind", "classes"), [("classification", 2), ("classification", 10), ("segmentation", 3)])
def test_a_probe_is_of_a_kind_that_the_plan_lacks(kind, version, classes):
    """A loss that no attack of the plan raises, beside one that the plan has, for longer."""

    def losses(settings: Any) -> set[Any]:
        if isinstance(settings, list):
            return {loss for s in settings for loss in losses(s)}
        if not isinstance(settings, dict):
            return set()
        own = {settings["loss"] or "the task's"} if "loss" in settings else set()
        own |= {f"margin up to {settings['kappa']:g}"} if "kappa" in settings else set()
        return own.union(*(losses(v) for v in settings.values()))

    threat = Threat("l2", 1.0, unit="norm")
    planned = {loss for stage in stages(kind, version, threat, classes) for loss in losses(stage.settings())}
    *again, other = (losses(Stage("", a).settings()) for a in probes.long_attacks(kind, threat, 300))
    assert other
    assert not other & planned
    # AutoAttack's cross-entropy is the loss of the task, and quick's PGD has no other.
    assert all(loss & (planned | {"the task's"}) for loss in again)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("honest", False),
        ("flat_logit", False),
        ("saturated_softmax", True),
        ("one_sigmoid", True),
        ("flat_sigmoid", True),
        ("honest_segmenter", False),
        ("softmax_segmenter", True),
        ("sigmoid_segmenter", True),
    ],
)
def test_outputs_after_a_softmax_or_a_sigmoid_are_no_logits(model: str, expected: bool) -> None:
    planted = getattr(planted_models, model)()
    case = planted.load(planted.cases[0])
    found = probes.consistency(case, case.images)
    assert found.probabilities is expected
    assert found.batch < 1e-5


def test_some_logits_between_0_and_1_are_logits_all_the_same() -> None:
    """Of the first eight images, the brighter ones; those after them are darker."""
    images = torch.cat([torch.linspace(0.1, 0.8, 8), torch.linspace(-2, -0.1, 8)]).view(16, 1, 1)
    model = Classifier("one", nn.Flatten(), images, (images.flatten() > 0).long(), ("dark", "bright"))
    assert not probes.consistency(model.load(model.cases[0]), images).probabilities


def test_a_random_model_says_nothing_about_its_batches():
    found = Consistency(batch=0.43, repeat=0.37, training=0, probabilities=False)
    assert repeat(found).raised
    assert batch(found).raised is None
    assert "two calls differ as much" in batch(found).measured
    assert batch(replace(found, repeat=0.0)).raised
    assert batch(replace(found, batch=1e-6, repeat=0.0)).raised is False


def _record_flags(noise_scores, pgd, square, clean=1.0, level="l2-3", cases=10):
    def answers(share):
        return [Score(f"c{i}", float(i < share * cases)) for i in range(cases)]

    table = {
        (level, "white noise"): answers(noise_scores),
        (level, "APGD-CE"): answers(pgd),
        (level, "Square"): answers(square),
    }
    return plant("m", answers(clean), table)


def test_square_may_not_beat_the_white_box_attacks():
    flag = black_box(_record_flags(0.9, 0.6, 0.5), "classification", FAMILY)
    assert flag.raised
    assert "10.0 points more (L2 3)" in flag.measured
    assert black_box(_record_flags(0.9, 0.6, 0.6), "classification", FAMILY).raised is False
    transfer = {"l2-3": {**FAMILIES, "Square": "transfer"}}
    assert black_box(_record_flags(0.9, 0.6, 0.5), "classification", transfer).raised
    gradients_only = {"l2-3": {"APGD-CE": "white-box"}}
    assert black_box(_record_flags(0.9, 0.6, 0.5), "classification", gradients_only).raised is None


def test_what_square_adds_to_a_mixture_of_slices_counts():
    """Slices share a score: Square alone may leave a high one, and still lower that of the worst mixture."""
    clean = [Score("a", 0.9)]
    records = plant("m", clean, {("l2-5", "APGD-CE"): [Score("a", 0.5)], ("l2-5", "Square"): [Score("a", 0.8)]})
    assert black_box(records, "segmentation", {"l2-5": FAMILIES}).raised is False
    mixed = [Record(**{**vars(r), "worst": (Score("a", 0.4),)}) if r.attack == "Square" else r for r in records]
    flag = black_box(mixed, "segmentation", {"l2-5": FAMILIES})
    assert flag.raised
    assert "10.0 points" in flag.measured


def test_attacks_after_square_do_not_hide_what_it_won():
    """They are not run on what Square has finished, and carry its score."""
    scores = {"APGD-CE": 1.0, "Square": 0.0, "SegPGD": 0.0}
    records = plant("m", [Score("a", 1.0)], {("l2-5", attack): [Score("a", v)] for attack, v in scores.items()})
    assert black_box(records, "classification", {"l2-5": FAMILIES}).raised


def test_more_steps_may_not_lower_the_reported_worst_case():
    records = _record_flags(0.9, 0.6, 0.6)
    reported = {f"c{i}": float(i < 6) for i in range(10)}
    left = {name: {name: score} for name, score in reported.items()}
    assert longer(records, probed(steps=80, longer={"l2-3": left})).raised is False
    assert longer(records, probed(steps=80, longer={"l2-3": left | {"c0": {"c0": 0.0}}})).raised
    assert longer(records, None).raised is None


@pytest.mark.parametrize(
    ("version", "left", "raised"), [("quick", 0.47, False), ("quick", 0.43, True), ("full", 0.47, True)]
)
def test_quick_attacks_are_a_first_look(version, left, raised):
    records = plant("m", [Score("a", 0.9)], {("l2-3", "APGD-CE"): [Score("a", 0.5)]})
    found = probed(steps=probes.STEPS[version], longer={"l2-3": {"a": {"a": left}}})
    flag = longer(records, found)
    assert flag.raised is raised
    assert f"{100 * (0.5 - left):.1f} points less (L2 3)" in flag.measured


def test_random_noise_may_not_do_what_the_attack_does():
    assert noise(_record_flags(0.6, 0.6, 0.6), FAMILY).raised
    assert noise(_record_flags(0.8, 0.4, 0.4), FAMILY).raised is False
    for nothing_left_or_lost in (0.0, 1.0):
        flag = noise(_record_flags(*(nothing_left_or_lost,) * 3), FAMILY)
        assert flag.outcome == "not run"
        assert "nothing to compare" in flag.measured
    assert noise(_record_flags(0.6, 0.6, 0.6), {"l2-3": {"APGD-CE": "white-box"}}).raised is None


@pytest.mark.parametrize(("second", "raised"), [(0.8, True), (0.405, False), (0.2, False)])
def test_the_score_may_not_rise_with_the_radius(second, raised):
    table = {("l2-3", "APGD-CE"): [Score("a", 0.4)], ("l2-5", "APGD-CE"): [Score("a", second)]}
    records = plant("m", [Score("a", 0.9)], table)
    assert records[-1].worst[0].score == min(0.4, second)  # the worst case hides it
    assert monotone(records, FAMILY).raised is raised


def test_another_norm_or_unit_is_another_radius():
    table = {("l2-3", "APGD-CE"): [Score("a", 0.1)], ("linf-0.5", "APGD-CE"): [Score("a", 0.9)]}
    assert monotone(plant("m", [Score("a", 0.9)], table), FAMILY).outcome == "not run"


def test_every_flag_calls_a_radius_as_the_user_wrote_it():
    """9/255 has no short decimal: nobody chose 0.0352941."""
    small, written = Level("linf", 4 / 255, words="4/255"), Level("linf", 9 / 255, words="9/255")
    white_box = {(level.key, "APGD-CE"): [Score("a", left)] for level, left in ((small, 0.3), (written, 0.7))}
    others = {(written.key, "white noise"): [Score("a", 0.7)], (written.key, "Square"): [Score("a", 0.1)]}
    records = plant("m", [Score("a", 0.9)], white_box | others)
    families = {level.key: FAMILIES for level in (small, written)}
    left = probed(steps=80, longer={written.key: {"a": {"a": 0.0}}}, relative={written.key: 2.0})
    flags = find_flags(records, "classification", families, left, [small, written])
    told = {flag.name: flag.measured for flag in flags}
    for name in ("black-box", "longer", "monotone", "noise", "inputs"):
        assert "9/255" in told[name], (name, told[name])


def test_dead_gradients_of_the_attacks_are_counted():
    records = plant(
        "m", [Score(str(i), 0.9) for i in range(10)], {("l2-3", "APGD-CE"): [Score(str(i), 0.5) for i in range(10)]}
    )
    assert zero_gradients(records, FAMILY, probed()).raised is False
    dead = [Record(**{**vars(r), "dead": int(r.case == "3")}) for r in records]
    flag = zero_gradients(dead, FAMILY, probed())
    assert flag.raised
    assert "10.0 % of the attacked inputs" in flag.measured


@pytest.mark.parametrize(
    ("scale", "box", "unit", "word"),
    [
        (255, (0.0, 1.0), "intensities", "lie outside the stated box"),
        (255, None, planted_models.UNIT, "standard deviation is"),
        (255, (0.0, 255.0), "intensities", "next to nothing"),
        (1, (0.0, 255.0), "intensities", "less than a twentieth"),
        (0.05, (0.0, 0.05), "intensities", "times the intensity range"),
        (1, (0.0, 1.0), "intensities in [0, 1]", ""),
    ],
)
def test_images_of_another_scale(scale, box, unit, word):
    model = planted_models.classifier(box=box, unit=unit)
    model.images = scale * torch.rand(model.images.shape, generator=torch.Generator().manual_seed(0))
    flag = inputs(probes.probe(model, (Level("linf", 8 / 255), Level("linf", 0.08)), steps=5, unbounded=15))
    assert flag.raised is bool(word)
    assert word in flag.measured


def test_the_probes_leave_the_model_and_the_random_stream_as_they_were():
    model = planted_models.honest()
    model.network = network = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), model.network).train()
    before = {n: v.clone() for n, v in network.state_dict().items()}
    state = torch.random.get_rng_state()
    found = probes.probe(model, LEVELS, steps=5, unbounded=15)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items())
    assert all(m.training for m in network.modules())
    assert batch(found).raised
    assert "layers are in training mode" in batch(found).measured


def test_batch_statistics_in_eval_mode_show_on_a_single_volume():
    model = planted_models.segmenter(before=nn.BatchNorm2d(1, track_running_stats=False))
    assert batch(probes.probe(model, LEVELS, cases=["0"], steps=5, unbounded=15)).raised


def test_a_gradient_too_small_for_its_digits_is_none():
    for factor, raised in ((1e-30, False), (1e-40, True)):
        model = planted_models.classifier(after=lambda y, factor=factor: y * factor)
        assert zero_gradients([], {}, probes.probe(model, LEVELS[:1], steps=5, unbounded=15)).raised is raised


def test_nothing_measured_is_no_pass():
    flags = find_flags([], "segmentation", {})
    assert {f.outcome for f in flags} == {"not run"}
    assert verdict(flags, "segmentation", 0, 0).word == "not enough measured"
    assert verdict(flags, "segmentation", 6, 2).word == "not fully checked"


def test_scores_that_are_not_defined_pass_no_check():
    nan = [Score("a", math.nan)]
    table = {("l2-3", "APGD-CE"): nan, ("l2-5", "APGD-CE"): nan, ("l2-5", "white noise"): nan}
    found = probed(steps=400, longer={"l2-3": {"a": {"a": 0.1}}}, unbounded={"l2": math.nan})
    records = plant("m", nan, table)
    flags = (
        longer(records, found),
        monotone(records, FAMILY),
        noise(records, FAMILY),
        unbounded(found),
    )
    assert {flag.outcome for flag in flags} == {"not run"}
    assert "nothing to compare" in flags[0].measured


@pytest.mark.parametrize(
    ("raised", "kind", "cases", "radii", "word", "reasons"),
    [
        (False, "segmentation", 6, 2, "reliable", ()),
        (False, "classification", 50, 2, "reliable", ()),
        (None, "segmentation", 6, 2, "not fully checked", ("Is it?",)),
        (False, "segmentation", 5, 2, "not enough measured", ("5 patients of at least 6",)),
        (None, "classification", 49, 2, "not enough measured", ("49 images of at least 50",)),
        (False, "segmentation", 6, 1, "not enough measured", ("1 radius of at least 2 of one norm and unit",)),
        (True, "segmentation", 1, 1, "not reliable", ("it is",)),
    ],
)
def test_a_verdict_needs_cases_and_radii(raised, kind, cases, radii, word, reasons):
    found = verdict([Flag("a", "Is it?", "it is", raised, "", "", "")], kind, cases, radii)
    assert (found.word, found.reasons) == (word, reasons)


def test_probes_are_repeatable_and_survive_json():
    first, second = (
        probes.probe(planted_models.honest_segmenter(), LEVELS, seed=3, steps=5, unbounded=15) for _ in range(2)
    )
    assert first == second
    assert typed(ModelProbe, json.loads(json.dumps(plain(first)))) == first
    assert math.isclose(first.relative["linf-0.5"], 0.5 / (first.high - first.low), rel_tol=1e-6)
    assert first.threats["l2-3"] == "L2 radius 3 (= 0.188 RMS per voxel), no box"
    assert first.trained is None
