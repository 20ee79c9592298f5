"""What a model was trained against reaches the evaluation, which says when it measured far less."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from monai_adv.defenses.gr import GR
from monai_adv.defenses.sat import SAT, SATSettings
from monai_adv.defenses.standard import Standard
from monai_adv.engines import SATTrainer
from monai_adv.engines.robust_state import threat_in
from monai_adv.evaluation.checks.probed import TrainedAgainst
from monai_adv.evaluation.checks.probes import probe
from monai_adv.evaluation.records import Level
from monai_adv.evaluation.report.trained import trained
from monai_adv.tasks import ClassificationTask
from nnunet_trainers.checkpoint import SECTION
from nnunet_trainers.evaluation.source import NNUNetSource
from nnunet_trainers.export import export
from tests import monai_engine_toys as toys
from tests import planted_models
from tests.planted_evaluation import probed
from tests.tiny_nnunet import write_case, write_planned

THREAT = {"norm": "l2", "eps": 0.1, "unit": "rms"}


def test_a_defence_says_what_it_trains_against() -> None:
    task = ClassificationTask()
    assert SAT(task, SATSettings(eps=0.1)).trained_against() == THREAT
    assert SAT(task, SATSettings(eps=0.0)).trained_against() is None
    assert Standard(task).trained_against() is None  # its radius is for validation alone
    assert GR(task).trained_against() is None


def test_a_training_in_monai_leaves_it_beside_the_weights(tmp_path: Path) -> None:
    """Of those after each epoch, alone or in a checkpoint; of nothing else that lies in the same folder."""
    network = toys.Classifier()
    torch.save(network.state_dict(), tmp_path / "model_clean.pt")
    state = tmp_path / "robust_state.pt"
    settings = {"eps": 0.1, "steps": 1}
    engine = toys.trainer(SATTrainer, toys.class_list(), network, epochs=2, settings=settings, state=state)
    save = lambda e: torch.save(network.state_dict(), tmp_path / f"model_{e.state.epoch}.pt")  # noqa: E731
    engine.add_event_handler(Events.EPOCH_COMPLETED, save)
    engine.run()
    torch.save({"model": network.state_dict(), "optimizer": engine.optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    for name in ("model_1", "model_2", "checkpoint"):
        assert threat_in(tmp_path / f"{name}.pt") == THREAT, name
    for name in ("model_clean", "absent", "robust_state"):
        assert threat_in(tmp_path / f"{name}.pt") == (THREAT if name == "robust_state" else None), name
    toys.trainer(SATTrainer, toys.class_list(), network, epochs=1, settings=settings, state=state).run()  # goes on
    assert threat_in(tmp_path / "model_1.pt") == THREAT


def test_the_checkpoint_of_an_nnunet_says_it(tmp_path: Path) -> None:
    write_case(tmp_path)
    folder = write_planned(tmp_path, ["ZScoreNormalization"])
    source = NNUNetSource(str(folder), str(tmp_path / "imagesTr"), str(tmp_path / "labelsTr"))
    assert source.open().trained is None  # of another trainer
    file = folder / "fold_0" / "checkpoint_final.pth"
    torch.save({**torch.load(file, weights_only=False), SECTION: {"threat": THREAT}}, file)
    assert source.open().trained == Level("l2", 0.1, "rms")
    exported, _ = export(folder, tmp_path / "plain")
    assert replace(source, model_folder=str(exported)).open().trained == Level("l2", 0.1, "rms")


def test_the_probes_convert_it_by_the_size_of_the_image() -> None:
    """By hand: 256 voxels, so an L2 norm of 3 is 3 / 16 per voxel, and RMS 0.5 is a norm of 8."""
    model: Any = planted_models.honest_segmenter()
    model.trained = Level("l2", 0.5, "rms")
    found = probe(model, [Level("l2", 3.0, "norm")], seed=3, steps=5)
    assert found.per_voxel == {"l2-3": 3 / 16}
    assert found.trained == TrainedAgainst(norm="l2", words="L2, 0.5 RMS per voxel (= L2 radius 8)", per_voxel=0.5)
    said = trained(found, [Level("l2", 3.0, "norm")])
    assert said is not None
    assert said.warning == (
        "the largest radius measured, L2 3, is 38 % of the one it was trained with (L2, 0.5 RMS per voxel (= L2 radius "
        "8)): measure that one as well"
    )


@pytest.mark.parametrize(
    ("measured", "warns"), [([0.02, 0.04], True), ([0.02, 0.06], False), ([0.05], False), ([0.3], False), ([], False)]
)
def test_below_half_of_the_trained_radius_the_evaluation_says_so(measured: list[float], warns: bool) -> None:
    levels = [Level("l2", eps, "rms") for eps in measured]
    probes = probed(
        trained=TrainedAgainst(norm="l2", words="L2, 0.1 RMS per voxel", per_voxel=0.1),
        per_voxel={level.key: level.eps for level in levels} | {"linf-0.001": 0.001},
    )
    found = trained(probes, [*levels, Level("linf", 0.001)])  # another norm is no comparison
    assert found is not None
    assert found.text == "L2, 0.1 RMS per voxel"
    assert bool(found.warning) == warns
    assert trained(None, levels) is None
    assert trained(probed(), levels) is None
