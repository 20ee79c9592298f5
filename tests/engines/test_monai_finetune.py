"""``preset: finetune`` in MONAI: from the weights that a bundle names to the best robust ones, within a budget."""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    LrScheduleHandler,
    MeanDice,
    ValidationHandler,
    from_engine,
)
from monai.transforms import AsDiscreted
from torch import nn

from monai_adv import InputError
from monai_adv.defenses import method
from monai_adv.defenses.sat import SAT as SAT_DEFENCE
from monai_adv.engines import DATTrainer, IMATrainer, RobustMetric, RobustState, SATTrainer
from monai_adv.engines.log_words import be_heard
from monai_adv.engines.run import epochs_within
from monai_adv.engines.starting_weights import find_plain
from tests import monai_engine_toys as toys
from tests import processes
from tests.places import ROOT

SAT = {"eps": 0.25, "unit": "norm", "steps": 1, "clean_weight": 0.0}
"""Five forwards per sample."""


class Shifted(nn.Module):
    """Two logits per voxel: foreground where the image is above a threshold, which training moves."""

    def __init__(self, threshold: float = 0.0) -> None:
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.threshold - x, x - self.threshold], 1)


def saved(file: Path, network: nn.Module) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), file)
    return file


def clean_dice() -> MeanDice:
    return MeanDice(include_background=False, output_transform=from_engine(["pred", "label"]))


def bundle(
    folder: Path, *, cls: Any = SATTrainer, threshold: float = 5.0, epochs: int = 10, interval: int = 1,
    save: str = "robust", handlers: Any = (), lr: float = 0.1, metric: Any = None, state: Any = None, **given: Any,
) -> Any:  # fmt: skip
    """A segmentation bundle that saves its best network, by clean Dice, as ``models/<save>/model.pt``."""
    network = Shifted(threshold)
    given = {**(SAT if cls is SATTrainer else {}), **given}
    keeps = CheckpointSaver(
        str(folder / "models" / save), {"model": network}, save_key_metric=True, key_metric_filename="model.pt"
    )
    validator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=toys.loader(toys.segment_list()), network=network,
        key_val_metric={"dice": metric or clean_dice()}, val_handlers=[keeps],
        postprocessing=AsDiscreted(["pred", "label"], argmax=[True, False], to_onehot=2),
    )  # fmt: skip
    return toys.trainer(
        cls, toys.segment_list(), network, loss=toys.dice_loss(), epochs=epochs, lr=lr, settings=given, state=state,
        train_handlers=[ValidationHandler(interval, validator), *handlers],
    )  # fmt: skip


def interrupted(engine: Any, after: int) -> Any:
    """Run it until it is killed after an epoch, before the best weights would be taken."""
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=after), lambda e: e.terminate())
    engine.run_around.best.take = lambda epoch: "interrupted"
    engine.run()
    return engine


def lr_of(engine: Any) -> float:
    return float(engine.optimizer.param_groups[0]["lr"])


def test_a_budget_becomes_epochs_by_hand() -> None:
    """20 plain epochs at 3 forwards are 60; ours cost 10, 5, 21 each."""
    assert [epochs_within(b, 20, f) for b, f in ((1.0, 10), (0.5, 10), (1.0, 5), (1.0, 21))] == [6, 3, 12, 2]
    assert epochs_within(0.29, 100, 3) == 29  # exactly: 0.29 * 300 / 3 is a hair below 29 in floating point
    with pytest.raises(InputError, match="budget: received 0.3, allowed is at least 0.35: one epoch at 21 forwards"):
        epochs_within(0.3, 20, 21)


def test_one_preset_from_the_published_weights_to_the_best_robust_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """10 epochs at 3 forwards pay for 6 at 5. The network of the config segments nothing, the published one all."""
    published = saved(tmp_path / "models" / "model.pt", Shifted(0.0))
    rates: list[float] = []
    with caplog.at_level(logging.INFO):
        engine = bundle(tmp_path, preset="finetune", plain_epochs=None, interval=4)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: rates.append(lr_of(e)))
        scores: dict[int, tuple[float, float]] = {}
        validator = engine.run_around.best.validator
        validator.add_event_handler(
            Events.EPOCH_COMPLETED,
            lambda e: scores.update({e.state.epoch: (e.state.metrics["robust"], engine.network.threshold.item())}),
        )
        engine.run()
    assert engine.state.epoch == engine.state.max_epochs == 6
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * e / 6)) / 2 for e in range(6)])
    assert sorted(scores) == [4, 6]  # the bundle validates every fourth epoch, the preset the last one as well
    best = max(scores, key=lambda epoch: scores[epoch][0])
    assert engine.network.threshold.item() == scores[best][1]
    kept = torch.load(tmp_path / "models" / "robust" / "model.pt", weights_only=True)
    assert kept["threshold"].item() == scores[best][1]
    assert torch.load(published, weights_only=True)["threshold"].item() == 0.0
    for said in (
        f"Fine-tuning from {published}.",
        "Price: up to 5 network passes per sample and step (in forwards), about 1.7 times a plain epoch.",
        "Budget 1: 6 epochs, for a plain training of 10 (the config's max_epochs; plain_epochs says another number).",
        "Learning rate: 0.1 to 0 along half a cosine over 6 epochs",
        "Chosen by the bundle's validation is now `robust`, under attack, not dice.",
        "for the last one.",
        f"The final weights are those of epoch {best}, robust {scores[best][0]:.4f} (`final_weights`).",
    ):
        assert said in caplog.text


def test_a_bundle_that_chooses_by_a_robust_metric_keeps_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    saved(tmp_path / "models" / "model.pt", Shifted())
    own = RobustMetric(eps=0.5, unit="norm", steps=2)
    engine = bundle(tmp_path, preset="finetune", budget=0.2, metric=own)
    best = engine.run_around.best
    assert (best.name, best.replaced) == ("dice", None)
    with caplog.at_level(logging.INFO):
        engine.run()
    assert "Chosen by the bundle's validation is now `dice`, the bundle's own RobustMetric (robust_" in caplog.text
    for name in ("eps", "steps", "batches"):
        given: dict[str, Any] = {"budget": 0.2, f"robust_validation_{name}": 2}
        with pytest.raises(InputError, match=f"robust_validation_{name}: received 2.* own RobustMetric `dice`"):
            bundle(tmp_path, preset="finetune", metric=own, **given)
    assert set(best.validator.state.metrics) == {"dice"}
    assert best.score == best.validator.state.metrics["dice"]


def test_what_is_given_beside_the_preset_wins(tmp_path: Path) -> None:
    """Named weights, 20 plain epochs, half of the budget, another first rate: 60 / 2 / 5 = 6 epochs from 0.02."""
    start = saved(tmp_path / "trained.pt", Shifted(0.25))
    more = {"initial_weights": str(start), "plain_epochs": 20, "budget": 0.5, "initial_lr": 0.02}
    engine = bundle(tmp_path, preset="finetune", **more, final_weights="last")
    assert engine.network.threshold.item() == 0.25
    assert engine.state.max_epochs == 6
    first: list[float] = []
    engine.add_event_handler(Events.EPOCH_STARTED, lambda e: first.append(lr_of(e)))
    engine.run()
    assert first[0] == pytest.approx(0.02)


def test_the_bundles_schedule_gives_way_to_the_cosine_and_only_to_it(tmp_path: Path) -> None:
    def rates(**given: Any) -> list[float]:
        network = Shifted()
        optimizer = torch.optim.SGD(network.parameters(), 0.1)
        theirs = LrScheduleHandler(torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5), print_lr=False)
        engine = toys.trainer(
            SATTrainer, toys.segment_list(), network, loss=toys.dice_loss(), epochs=3, optimizer=optimizer,
            settings={**SAT, **given}, train_handlers=[theirs],
        )  # fmt: skip
        seen: list[float] = []
        engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), lambda e: seen.append(lr_of(e)))
        engine.run()
        return seen

    assert rates() == [0.1, 0.05, 0.025]
    assert rates(schedule="cosine") == pytest.approx([0.1, 0.075, 0.025])


def test_another_handler_that_sets_the_rate_ends_the_run(tmp_path: Path) -> None:
    engine = toys.trainer(
        SATTrainer, toys.segment_list(), Shifted(), loss=toys.dice_loss(), settings={**SAT, "schedule": "cosine"}
    )
    engine.add_event_handler(Events.ITERATION_STARTED, lambda e: e.optimizer.param_groups[0].update(lr=1.0))
    with pytest.raises(InputError, match="schedule: received 'cosine beside a handler that sets the learning rate"):
        engine.run()


# -------------------------------------------------------------------- which weights


def test_the_plain_weights_are_found_among_decoys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what this run writes, nor what a defence has trained; several that are left are an error that names them."""
    monkeypatch.chdir(tmp_path)
    network = Shifted()
    models = tmp_path / "bundle" / "models"
    saver = CheckpointSaver(
        str(models / "new"), {"model": network}, save_key_metric=True, key_metric_filename="model.pt"
    )
    written = {(models / "new" / "model.pt").resolve()}

    def found() -> Path:
        return find_plain([saver], written)

    with pytest.raises(InputError, match="allowed is a model.pt of a plain training; there is no model.pt in .*new"):
        found()
    saved(models / "new" / "model.pt", network)
    with pytest.raises(InputError, match="new/model.pt would be replaced by this run's CheckpointSaver"):
        found()
    saved(models / "model.pt", network)
    assert found() == models / "model.pt"
    saved(tmp_path / "models" / "model.pt", network)
    with pytest.raises(InputError, match=r"there are several; name one of .*bundle/models/model.pt, models/model.pt"):
        found()
    beside = RobustState(tmp_path / "models" / "robust_state.pt")
    beside.connect(toys.trainer(SATTrainer, toys.class_list()).defense, "SAT", {}, logging.getLogger())
    beside.write(network, 1)
    assert found() == models / "model.pt"
    (models / "model.pt").unlink()
    with pytest.raises(InputError, match="models/model.pt was trained by a defence already"):
        found()


def test_a_checkpoint_loader_of_the_bundle_is_its_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = saved(tmp_path / "pretrained.pt", Shifted(0.125))
    network = Shifted(5.0)
    loader = CheckpointLoader(str(file), {"model": network})
    given: dict[str, Any] = {"loss": toys.dice_loss(), "lr": 0.0, "train_handlers": [loader]}
    with caplog.at_level(logging.INFO):
        engine = toys.trainer(
            SATTrainer, toys.segment_list(), network, settings={**SAT, "initial_weights": "plain"}, **given
        )
        engine.run()
    assert network.threshold.item() == 0.125
    assert f"Fine-tuning from {file}, which the bundle's CheckpointLoader names." in caplog.text
    other = saved(tmp_path / "other.pt", Shifted())
    with pytest.raises(InputError, match="none beside a CheckpointLoader of .*pretrained.pt, which loads later"):
        toys.trainer(SATTrainer, toys.segment_list(), network, settings={**SAT, "initial_weights": str(other)}, **given)


def test_a_run_does_not_overwrite_what_it_starts_from(tmp_path: Path) -> None:
    published = saved(tmp_path / "models" / "model.pt", Shifted())
    with pytest.raises(InputError, match="models/model.pt would be replaced by this run's CheckpointSaver: give it a"):
        bundle(tmp_path, preset="finetune", save=".")
    with pytest.raises(InputError, match="initial_weights: received .*allowed is a file that this run does not write"):
        bundle(tmp_path, preset="finetune", save=".", initial_weights=str(published))


def test_weights_that_get_nothing_right(tmp_path: Path) -> None:
    """Two batches an epoch, so the eighth is in the fourth; no file has been written by then."""
    saved(tmp_path / "models" / "model.pt", Shifted(50.0))
    engine = bundle(tmp_path, preset="finetune", lr=0.0, interval=5)
    said = r"none of the first 32 training samples has a Dice above 0.1', allowed .*next to nothing to attack"
    with pytest.raises(InputError, match=said):
        engine.run()
    assert list((tmp_path / "models" / "robust").iterdir()) == []


def test_weights_that_get_little_right_are_refused_by_who_attacks_right_samples_only(tmp_path: Path) -> None:
    """Best Dice 0.55: between 0.1 and the threshold, where SAT attacks and IMA does not."""
    saved(tmp_path / "models" / "model.pt", Shifted(1.5))
    given = {"preset": "finetune", "lr": 0.0, "interval": 5}
    bundle(tmp_path, **given).run()
    said = r"none of the first 32 training samples has a Dice above 0.6', .*; IMA attacks samples that are right"
    with pytest.raises(InputError, match=said):
        bundle(tmp_path, cls=IMATrainer, steps=1, searches=1, budget=3.0, **given).run()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"preset": "finetune", "budget": 0.1}, "budget: received 0.1, allowed is at least 0.167: one epoch at 5 forw"),
        ({"budget": 1.0}, "budget: received 1.0, allowed is given beside initial_weights"),
        ({"plain_epochs": 3}, "plain_epochs: received 3, allowed is given beside budget"),
        ({"budget": "0h"}, "budget: received '0h', allowed is a number > 0, hours such as 2h or none"),
        ({"initial_lr": 0.1}, "initial_lr: received 0.1, allowed is given beside schedule: cosine"),
        ({"initial_weights": "nowhere.pt"}, "initial_weights: received 'nowhere.pt', allowed is an existing file"),
        ({"preset": "finetune", "budget": "lots"}, "budget: received 'lots'"),
    ],
)
def test_what_is_refused(tmp_path: Path, given: dict[str, Any], error: str) -> None:
    saved(tmp_path / "models" / "model.pt", Shifted())
    with pytest.raises(InputError, match=error):
        bundle(tmp_path, **given)


def test_nothing_that_validates(tmp_path: Path) -> None:
    file = saved(tmp_path / "model.pt", Shifted())
    settings = {**SAT, "preset": "finetune", "budget": None, "initial_weights": str(file)}
    with pytest.raises(InputError, match="final_weights: received 'best_robust', allowed is last without a validation"):
        toys.trainer(SATTrainer, toys.segment_list(), Shifted(), loss=toys.dice_loss(), settings=settings)


# -------------------------------------------------------------------- a break


def test_after_a_break_the_schedule_goes_on_where_it_was(tmp_path: Path) -> None:
    """Six epochs at once, and three and three: the same rates, the same weights, the same best epoch."""
    saved(tmp_path / "models" / "model.pt", Shifted())
    whole = bundle(tmp_path, preset="finetune")
    whole.run()

    first = interrupted(bundle(tmp_path, preset="finetune"), 3)
    parts = {"state": first.robust_state, "network": first.network, "optimizer": first.optimizer}
    checkpoint = {name: part.state_dict() for name, part in parts.items()}
    torch.save(checkpoint, tmp_path / "break.pt")
    read = torch.load(tmp_path / "break.pt", weights_only=True)

    second = bundle(tmp_path, preset="finetune")
    second.robust_state.load_state_dict(read["state"])
    second.network.load_state_dict(read["network"])
    second.optimizer.load_state_dict(read["optimizer"])
    rates: list[tuple[int, float]] = []
    second.add_event_handler(Events.ITERATION_COMPLETED, lambda e: rates.append((e.state.epoch, lr_of(e))))
    second.run()
    assert [epoch for epoch, _ in rates] == [4, 4, 5, 5, 6, 6]
    assert rates[0][1] == pytest.approx(0.05)  # half of the way
    assert second.state.iteration == whole.state.iteration == 12
    assert second.run_around.best.epoch == whole.run_around.best.epoch

    again = bundle(tmp_path, preset="finetune")
    again.robust_state.load_state_dict(whole.robust_state.state_dict())
    with pytest.raises(InputError, match="state: received 'that of a training whose 6 epochs are done'"):
        again.run()


def test_a_forecast_from_clean_epochs_says_that_attacked_ones_are_dearer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """IMA on a network that finds nothing, which it does not change here: 2 + 7 + 1 forwards instead of 3."""
    with caplog.at_level(logging.INFO):
        bundle(tmp_path, cls=IMATrainer, threshold=50.0, epochs=2, lr=0.0, steps=1, searches=1).run()
    assert "for the last one. Nothing was attacked in this time: once something is, up to 3.3 times" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO):
        bundle(tmp_path, epochs=2).run()
    assert "for the last one." in caplog.text
    assert "in this time" not in caplog.text


def test_the_file_of_the_best_network_outlives_a_break(tmp_path: Path) -> None:
    """The saver of a run that goes on knows no score: it would leave an epoch that is worse than the one before."""
    published = saved(tmp_path / "models" / "model.pt", Shifted(0.0))
    first = interrupted(bundle(tmp_path, preset="finetune", lr=0.0), 3)
    saved(published, Shifted(0.5))  # where the training has gone since: worse, under attack as well
    second = bundle(tmp_path, preset="finetune", lr=0.0)
    second.robust_state.load_state_dict(first.robust_state.state_dict())
    second.run()
    written = torch.load(tmp_path / "models" / "robust" / "model.pt", weights_only=True)
    assert second.run_around.best.epoch == 1
    assert second.network.threshold.item() == written["threshold"].item() == 0.0


def test_the_file_goes_on_where_the_weights_are(tmp_path: Path) -> None:
    """What an epoch's validation found is in the file, and so is the number of the epoch."""
    file = tmp_path / "models" / "robust" / "robust_state.pt"
    given: dict[str, Any] = {"threshold": 0.0, "epochs": 6, "schedule": "cosine", "final_weights": "best_robust"}
    whole = bundle(tmp_path, **given)
    whole.run()
    first = interrupted(bundle(tmp_path, state=file, **given), 3)
    best = torch.load(file, weights_only=True)["state"]["run"]["best"]
    assert best["epoch"] == first.run_around.best.epoch > 0
    assert best["score"] == first.run_around.best.score

    def go_on(network: nn.Module) -> Any:
        engine = bundle(tmp_path, state=file, **given)
        engine.network.load_state_dict(network.state_dict())
        return engine

    second = go_on(first.network)
    epochs: list[int] = []
    second.add_event_handler(Events.EPOCH_STARTED, lambda e: epochs.append(e.state.epoch))
    last: dict[str, Any] = {}  # before the best weights replace them
    second.add_event_handler(Events.EPOCH_COMPLETED, lambda e: last.update(copy.deepcopy(e.network.state_dict())))
    second.run()
    assert epochs == [4, 5, 6]
    assert second.run_around.best.epoch == whole.run_around.best.epoch
    assert second.network.threshold.item() == whole.network.threshold.item()
    done = go_on(second.network)
    done.network.load_state_dict(last)
    with pytest.raises(InputError, match="state: received 'that of a training whose 6 epochs are done'"):
        done.run()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "with the first batch"])
def test_a_defence_is_told_the_epoch_that_goes_on(late: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ramps and warm-ups follow from it; also where the task, so the defence, is known with the first batch only."""
    data = toys.class_list()
    transform = (lambda item: {**item, "label": int(item["label"] == "malignant")}) if late else None
    if late:
        data = [{**item, "label": "malignant" if item["label"] else "benign"} for item in data]

    def make() -> Any:
        settings = {"eps": 0.1, "steps": 1, "schedule": "cosine"}
        return toys.trainer(SATTrainer, toys.loader(data, transform=transform), epochs=4, settings=settings)

    first = make()
    assert (first.defense is None) == late
    first.add_event_handler(Events.EPOCH_COMPLETED(once=2), lambda e: e.terminate())
    first.run()
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(SAT_DEFENCE, "on_epoch_start", lambda self, epoch, epochs: told.append((epoch, epochs)))
    second = make()
    second.robust_state.load_state_dict(first.robust_state.state_dict())
    second.run()
    assert told == [(2, 4), (3, 4)]
    assert second.state.epoch == 4


# -------------------------------------------------------------------- what is said


def test_a_trainer_is_heard_where_nobody_has_configured_logging(tmp_path: Path) -> None:
    """A Python script, or a bundle without logging.conf: Python would drop what is only information."""
    code = (
        "import pathlib, sys; from tests.engines import test_monai_finetune as t; folder = pathlib.Path(sys.argv[1]); "
        "t.saved(folder / 'models' / 'model.pt', t.Shifted()); t.bundle(folder, preset='finetune', budget=0.2).run()"
    )
    done = processes.run([sys.executable, "-c", code, str(tmp_path)])
    for said in ("SATTrainer settings", "Price: up to 5", "Fine-tuning from", "Budget 0.2", "The final weights are"):
        assert done.stdout.count(said) == 1, done.stderr


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_a_logging_that_somebody_has_configured_stays(level: int) -> None:
    logger = logging.getLogger("test_monai_finetune.configured")
    logger.setLevel(level)
    be_heard(logger)  # pytest has handlers at the root
    assert (logger.handlers, logger.level) == ([], level)


def test_a_budget_is_no_setting_that_changes_on_the_way(tmp_path: Path) -> None:
    saved(tmp_path / "models" / "model.pt", Shifted())
    first = bundle(tmp_path, preset="finetune")
    other = bundle(tmp_path, preset="finetune", budget=0.5)
    with pytest.raises(InputError, match=r"budget: received 0.5, allowed is that of the checkpoint \(1.0\)"):
        other.robust_state.load_state_dict(first.robust_state.state_dict())
    dearer = bundle(tmp_path, preset="finetune", steps=2)
    with pytest.raises(InputError, match=r"steps: received 2, allowed is that of the checkpoint \(1\)"):
        dearer.robust_state.load_state_dict(first.robust_state.state_dict())


def timed(engine: Any, seconds: Callable[[int], float]) -> list[float]:
    """Give it a clock that only steps move; the learning rates of its epochs, as they come.

    Args:
        engine: to run.
        seconds: of one step, from the number of its epoch.
    """
    clock, rates = [1000.0], []
    engine.run_around._now = lambda: clock[0]

    def step(engine: Any) -> None:
        clock[0] += seconds(engine.state.epoch)

    engine.add_event_handler(Events.ITERATION_COMPLETED, step)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: rates.append(lr_of(e)))
    validator = engine.run_around.best.validator if engine.run_around.best else None
    if validator is not None:
        validator.add_event_handler(Events.COMPLETED, lambda _: clock.__setitem__(0, clock[0] + 10))
    return rates


@pytest.mark.parametrize("epochs", [1, 10])
def test_hours_are_as_many_epochs_as_fit_with_their_validation(
    epochs: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Two steps of 10 s and a validation of 10: 180 s hold 6 epochs, whatever the config's max_epochs."""
    saved(tmp_path / "models" / "model.pt", Shifted())
    engine = bundle(tmp_path, preset="finetune", budget="0.05h", epochs=epochs)
    rates = timed(engine, lambda epoch: 10)
    with caplog.at_level(logging.INFO):
        engine.run()
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * e / 6)) / 2 for e in range(6)])
    assert "Budget 0.05h: how many epochs that is follows from the time that they take" in caplog.text
    assert "About 30 s per epoch, 2 minutes for the 5 that are left." in caplog.text
    assert "Budget 0.05h: 6 epochs in 0.05 hours." in caplog.text


def test_hours_hold_where_later_epochs_take_longer(tmp_path: Path) -> None:
    """30 s, then 60 each, validation included: 6 epochs look possible, then 4 (mean 45), then 3 (30 s left at 50)."""
    saved(tmp_path / "models" / "model.pt", Shifted())
    engine = bundle(tmp_path, preset="finetune", budget="0.05h")
    rates = timed(engine, lambda epoch: 10 if epoch == 1 else 25)
    engine.run()
    assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * e)) / 2 for e in (0, 1 / 6, 2 / 4)])


def test_hours_of_a_training_that_goes_on_are_those_that_are_left(tmp_path: Path) -> None:
    """Two of six epochs before the break, which costs nothing; a slower machine has time for two more, not four."""
    saved(tmp_path / "models" / "model.pt", Shifted())
    first = bundle(tmp_path, preset="finetune", budget="0.05h")
    timed(first, lambda epoch: 10)
    interrupted(first, 2)
    for seconds, fractions in ((10, (2 / 6, 3 / 6, 4 / 6, 5 / 6)), (25, (2 / 6, 3 / 4))):
        second = bundle(tmp_path, preset="finetune", budget="0.05h", epochs=1)
        second.robust_state.load_state_dict(copy.deepcopy(first.robust_state.state_dict()))
        rates = timed(second, lambda epoch, seconds=seconds: seconds)  # type: ignore[misc]
        second.run()
        assert rates == pytest.approx([0.1 * (1 + math.cos(math.pi * e)) / 2 for e in fractions])
    done = bundle(tmp_path, preset="finetune", budget="0.05h")
    done.robust_state.load_state_dict(second.robust_state.state_dict())
    with pytest.raises(InputError, match="state: received 'that of a training whose 4 epochs are done'"):
        done.run()


def test_hours_need_no_plain_training_and_hold_one_epoch_at_least(tmp_path: Path) -> None:
    """Eight steps of 10 s are 80 s, 0.023 hours; no validator, no weights to start from, the bundle's own schedule."""

    def within(budget: str) -> Any:
        data = toys.loader(toys.segment_list(), batch_size=1)
        settings = {**SAT, "budget": budget}
        engine = toys.trainer(SATTrainer, data, Shifted(), loss=toys.dice_loss(), epochs=5, settings=settings)
        timed(engine, lambda epoch: 10)
        engine.run()
        return engine.state.epoch

    assert within("0.07h") == 3
    said = r"budget: received '0.02h', allowed is at least 0.03h: one epoch takes about 80 s here; give more hours"
    with pytest.raises(InputError, match=said):
        within("0.02h")


def test_every_method_has_the_preset(tmp_path: Path) -> None:
    """DAT has none of its own: the run's part alone, and 4 steps are 11 forwards, of 270: 24 epochs. IMA has one."""
    saved(tmp_path / "models" / "model.pt", Shifted())
    assert "finetune" not in method("DAT").presets
    assert bundle(tmp_path, cls=DATTrainer, preset="finetune", steps=4, epochs=90).state.max_epochs == 24
    engine = bundle(tmp_path, cls=IMATrainer, preset="finetune", steps=2, searches=1, epochs=90)
    assert engine.state.max_epochs == 22  # 12 forwards
    assert engine.defense.settings.margin_of == "case"


def test_the_bundles_own_file_says_what_its_clean_training_was() -> None:
    """20 epochs of the clean weights pay for 6 of SAT at 10 forwards, which do not replace them."""
    configs = ROOT / "bundles" / "robust_organ_segmentation" / "configs"
    ours, clean = (json.loads((configs / f"{name}.json").read_text()) for name in ("finetune", "clean"))
    given = ours["train#trainer#settings"]
    assert given["plain_epochs"] == clean["epochs"]
    assert given["initial_weights"].endswith(f"/models/{clean['model_file']}'")
    assert ours["model_file"] not in (clean["model_file"], "model.pt")
    sat = method("SAT")
    forwards = sat.most(sat.settings(**sat.presets["finetune"]))
    assert epochs_within(1.0, given["plain_epochs"], forwards) == 6
