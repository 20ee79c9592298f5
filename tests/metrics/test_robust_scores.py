"""RobustScores: figures of a linear classifier under attack, known by hand; patients; two ranks in test_bundles.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from torch import Tensor, nn

from monai_adv.attacks import FGSM, PGD
from monai_adv.engines import RobustScores
from monai_adv.engines.robust_scores import MEASURES, figures_of
from monai_adv.errors import InputError
from monai_adv.threats import Threat

VALUES = (-3.0, -1.0, -0.5, 0.5, 1.0, 3.0)
LABELS = (0, 0, 1, 0, 1, 1)
PATIENTS = (7, 7, 8, 9, 8, 8)


class Sign(nn.Module):
    """Class 1 if the pixel is above 0; attacking it by r moves the pixel by r."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        x = self.scale * images.flatten(1)
        return torch.cat([-x, x], 1)


def evaluate(**metrics: RobustScores) -> dict[str, float]:
    items = [
        {"image": torch.tensor([[[value]]]), "label": label, "patient": patient}
        for value, label, patient in zip(VALUES, LABELS, PATIENTS, strict=True)
    ]
    (key, metric), *others = metrics.items()
    engine = SupervisedEvaluator(
        torch.device("cpu"), DataLoader(Dataset(items), batch_size=4), Sign(), key_val_metric={key: metric},
        additional_metrics=dict(others),
    )  # fmt: skip
    engine.run()
    found: dict[str, float] = engine.state.metrics
    return found


def test_figures_of_a_linear_classifier() -> None:
    """Clean: pixels -0.5 and 0.5 are wrong. A radius of 2 moves -1 and 1 across 0 and leaves -3 and 3."""
    found = evaluate(clean=RobustScores(eps=0.0), attacked=RobustScores(eps=2.0, unit="norm", key="f1"))
    assert found["clean"] == found["clean_accuracy"] == pytest.approx(4 / 6)
    assert found["clean_sensitivity"] == found["clean_specificity"] == pytest.approx(2 / 3)
    assert found["attacked_accuracy"] == pytest.approx(2 / 6)
    assert found["attacked"] == found["attacked_f1"] == pytest.approx(1 / 3)
    assert found["attacked_g_mean"] == pytest.approx(1 / 3)
    # Attacked, class 0 is at -1, 1, 2.5 and class 1 at -2.5, -1, 1: one pair in order, and two ties.
    assert found["attacked_auc"] == pytest.approx(2 / 9)


def test_auc_sees_attacks_that_go_on_after_the_boundary() -> None:
    """An attack that stopped at the first wrong step would leave a far better ranking."""
    found = evaluate(attacked=RobustScores(eps=4.0, unit="norm", steps=20))
    assert found["attacked_auc"] == 0.0


def test_patients_are_judged_by_their_mean_probability() -> None:
    found = evaluate(patient=RobustScores(eps=0.0, group_key="patient", key="accuracy"))
    # Patient 7: right; 8: two sure images outvote the wrong one; 9: wrong.
    assert found["patient"] == pytest.approx(2 / 3)
    with pytest.raises(InputError, match="group_key: received 'woman', allowed is a key of the batch"):
        evaluate(patient=RobustScores(eps=0.0, group_key="woman"))


def test_any_attack_can_be_given() -> None:
    threat = Threat("linf", 2.0)
    found = evaluate(
        fgsm=RobustScores(attack=FGSM(threat)), pgd=RobustScores(attack=PGD(threat, steps=2, relative_step=0.25))
    )
    assert found["fgsm_accuracy"] == pytest.approx(2 / 6)
    # Two steps of a quarter reach 1: pixels at -1 and 1 come to lie on the boundary, which counts as class 0.
    assert found["pgd_accuracy"] == pytest.approx(3 / 6)


def test_network_that_always_says_one_class_has_g_mean_0() -> None:
    rows = torch.tensor([[0, 0, 0.9, 0.1], [1, 0, 0.8, 0.2], [2, 1, 0.7, 0.3]], dtype=torch.double)
    found = figures_of(rows)
    assert set(found) == set(MEASURES)
    assert found["g_mean"] == 0
    assert found["balanced_accuracy"] == 0.5
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_three_classes_are_averaged() -> None:
    rows = torch.cat([torch.arange(3)[:, None], torch.arange(3)[:, None], torch.eye(3)[[0, 1, 0]]], 1).double()
    found = figures_of(rows)
    assert found["balanced_accuracy"] == found["sensitivity"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("options", "said"), [({"key": "recall"}, "key: received 'recall'"), ({}, "eps and attack")])
def test_bad_options_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        RobustScores(**options)
