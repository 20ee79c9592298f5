"""``preset: finetune`` in nnU-Net: from the plain model in nnUNet_results to a robust one, by name alone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from monai_adv import InputError
from nnunet_trainers import IMATrainer, SATTrainer
from nnunet_trainers.checkpoint import load_data
from nnunet_trainers.plain_model import read_plain
from tests.nnunet_host import datasets, host, same, weights  # noqa: F401  (fixtures)

FINETUNE: dict[str, Any] = {"preset": "finetune", "epochs": None, "steps": 1, "clean_weight": 0.0, "threshold": 1e-6}


@pytest.fixture
def plain(host: Any) -> Any:
    """A plain training of 20 epochs of 2 steps: 120 forwards a sample."""
    trainer = host(nnUNetTrainer)
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 20, 2, 1
    trainer.run_training()
    return trainer


def _log(trainer: Any) -> str:
    return next(Path(trainer.output_folder).glob("training_log*")).read_text()


def _logs(trainer: Any) -> str:
    """Of all runs in its folder."""
    return "".join(log.read_text() for log in Path(trainer.output_folder).glob("training_log*"))


def test_from_the_plain_model_within_its_budget_to_the_best_robust_weights(host: Any, plain: Any) -> None:
    """SAT with one step: 5 forwards a sample; 2 steps an epoch: 0.19 of 120 forwards pay for two (10 each)."""
    trainer = host(SATTrainer, **FINETUNE, budget=0.19)
    assert trainer.num_epochs == 2
    seen: list[Any] = []
    trainer.on_epoch_start = lambda own=trainer.on_epoch_start: (seen.append(weights(trainer)), own())
    trainer.run_training()
    assert same(seen[0], weights(plain))  # output layers included
    folder, log = Path(trainer.output_folder), _log(trainer)
    assert f"Fine-tuning from {plain.output_folder}" in log
    assert "Price: up to 5 network passes per sample and step (in forwards), about 1.7 times a plain epoch." in log
    assert "Budget 0.19: 2 epochs of 2 steps, for a plain training of 20 epochs of 2." in log
    best, final = (load_data(folder / f"checkpoint_{name}.pth") for name in ("best_robust", "final"))
    assert all(torch.equal(v, final["network_weights"][k]) for k, v in best["network_weights"].items())
    row = best["monai_adv"]["robustness"][-1]
    assert (
        f"The final weights are those of epoch {row['epoch']}, as in checkpoint_best_robust.pth (`final_weights`): "
        f"pseudo Dice {row['robust_dice']:.4f} under attack, {row['mean_fg_dice']:.4f} clean."
    ) in log


@pytest.mark.parametrize("writes_none", ["nothing is attacked", "--disable_checkpointing"])
def test_the_best_weights_of_an_earlier_run_are_not_taken_for_this_one(host: Any, plain: Any, writes_none: str) -> None:
    earlier = host(SATTrainer, **FINETUNE, budget=0.19)
    earlier.run_training()
    unattacked = {"eps": 0.0} if writes_none == "nothing is attacked" else {}
    trainer = host(SATTrainer, **FINETUNE, budget=0.19, **unattacked)
    trainer.disable_checkpointing = not unattacked
    last: list[Any] = []
    trainer.on_epoch_end = lambda own=trainer.on_epoch_end: (own(), last.append(weights(trainer)))
    trainer.run_training()
    folder = Path(trainer.output_folder)
    assert "This run has no checkpoint_best_robust.pth, so the final weights are the last" in _logs(trainer)
    old = load_data(folder / "checkpoint_best_robust.pth")["network_weights"]
    assert same(weights(trainer), last[-1])
    assert not same(weights(trainer), list(old.values()))


def test_a_run_that_goes_on_keeps_its_best_weights(host: Any, plain: Any) -> None:
    """Epoch 1 is done again, and is not the best: what the file says of its first time is in no row that is left."""
    broken = host(SATTrainer, **FINETUNE, budget=0.19)
    broken.save_every = 1
    broken.run_training()
    folder = Path(broken.output_folder)
    best = load_data(folder / "checkpoint_best_robust.pth")
    best["monai_adv"]["robustness"][-1]["note"] = 0.0  # a row that the second part does not have
    best["network_weights"] = {k: v + 1 for k, v in best["network_weights"].items()}
    torch.save(best, folder / "checkpoint_best_robust.pth")
    trainer = host(SATTrainer, epochs=None, steps=1)
    trainer.load_checkpoint(str(folder / "checkpoint_final.pth"))
    trainer.current_epoch = 1
    trainer.robustness.last_is_best = lambda: False
    trainer.run_training()
    assert same(weights(trainer), list(best["network_weights"].values()))


def test_weights_of_another_fold_are_warned_of(host: Any, plain: Any) -> None:
    file = Path(plain.output_folder) / "checkpoint_final.pth"
    checkpoint = load_data(file)
    checkpoint["init_args"]["fold"] = 1
    torch.save(checkpoint, file)
    trainer = host(SATTrainer, **FINETUNE, budget=0.19)
    trainer.run_training()
    assert f"WARNING: {file} is of fold 1, which trains with what validates fold {trainer.fold}" in _log(trainer)


def test_a_budget_in_hours(host: Any, plain: Any) -> None:
    """All the time that the plain training took, by its own log: 20 epochs of 2 steps at 3 forwards are 12 at 5."""
    hours = read_plain(Path(plain.output_folder) / "checkpoint_final.pth").hours
    logged = load_data(Path(plain.output_folder) / "checkpoint_final.pth")["logging"]
    assert 0 < hours <= (logged["epoch_end_timestamps"][-1] - logged["epoch_start_timestamps"][0]) / 3600 * 1.5
    assert host(SATTrainer, **FINETUNE, budget=f"{1.01 * hours:.9f}h").num_epochs == 12


@pytest.mark.parametrize(("slower", "said"), [(1, False), (1000, True)])
def test_hours_that_do_not_suffice_on_this_machine(slower: int, said: bool, host: Any, plain: Any) -> None:
    """The plain model's epochs took a thousandth of the time, by its log, or exactly half an hour each."""
    file = Path(plain.output_folder) / "checkpoint_final.pth"
    checkpoint = load_data(file)
    seconds = 1800 / slower**2
    checkpoint["logging"]["epoch_start_timestamps"] = [1e9 + i for i in range(20)]
    checkpoint["logging"]["epoch_end_timestamps"] = [1e9 + i + seconds for i in range(20)]
    torch.save(checkpoint, file)
    trainer = host(SATTrainer, **FINETUNE, iterations=6, budget=f"{10 * seconds / 3600:.12f}h")
    trainer.run_training()
    assert trainer.num_epochs == 2  # half of 20 epochs of 2 steps at 3 forwards, for 6 at 5
    assert (
        "of the budget, which were reckoned with the times in the plain model's checkpoint" in _log(trainer)
    ) == said


def test_a_budget_is_no_setting_that_changes_on_the_way(host: Any, plain: Any) -> None:
    trainer = host(SATTrainer, **FINETUNE, budget=0.19)
    trainer.run_training()
    file = os.path.join(trainer.output_folder, "checkpoint_final.pth")
    again = host(SATTrainer, epochs=None, steps=1)
    again.load_checkpoint(file)
    assert again.num_epochs == 2
    with pytest.raises(InputError, match=r"budget: received 0.5, allowed is that of the checkpoint \(0.19\)"):
        host(SATTrainer, **FINETUNE, budget=0.5).load_checkpoint(file)
    for name, value, before in (("iterations", 3, 2), ("steps", 2, 1)):
        said = rf"{name}: received {value}, allowed is that of the checkpoint \({before}\)"
        with pytest.raises(InputError, match=said):
            host(SATTrainer, **{**FINETUNE, "budget": 0.19, name: value}).load_checkpoint(file)


def test_a_run_of_so_many_epochs_does_not_go_on_within_a_budget(host: Any, plain: Any) -> None:
    given = {"steps": 1, "threshold": 1e-6}
    trainer = host(SATTrainer, **given, epochs=3)
    trainer.on_train_start()
    file = os.path.join(trainer.output_folder, "checkpoint_latest.pth")
    trainer.save_checkpoint(file)
    said = (
        r"budget: received 1.0, allowed is none with .*checkpoint_latest.pth, which was begun without one .epochs: 3."
    )
    with pytest.raises(InputError, match=said):
        host(SATTrainer, **FINETUNE, goes_on=True).load_checkpoint(file)


def test_a_budget_below_one_epoch_makes_no_folder(host: Any, plain: Any) -> None:
    results = Path(plain.output_folder_base).parent
    with pytest.raises(InputError, match=r"budget: received 0.05, allowed is at least 0.084: one epoch, 2 steps at 5 "):
        host(SATTrainer, **FINETUNE, budget=0.05)
    assert [p.name for p in results.iterdir()] == [Path(plain.output_folder_base).name]


def _with_dice(plain: Any, dice: float | None) -> Path:
    file = Path(plain.output_folder) / "checkpoint_final.pth"
    checkpoint = load_data(file)
    checkpoint["logging"] |= {"mean_fg_dice": [] if dice is None else [dice]}
    torch.save(checkpoint, file)
    return file


def test_a_plain_model_that_segments_too_little(host: Any, plain: Any) -> None:
    """With a budget or without; how much is too little is the method's to say."""
    _with_dice(plain, 0.55)
    given = {**FINETUNE, "threshold": 0.6}
    assert host(SATTrainer, **given).start.dice == 0.55
    ima = {name: value for name, value in given.items() if name != "clean_weight"}
    for length in ({}, {"budget": None, "epochs": 1}):
        with pytest.raises(InputError, match=r"allowed is a model above the `threshold` 0.6 with IMA"):
            host(IMATrainer, **{**ima, **length})
    _with_dice(plain, 0.06)
    for length in ({}, {"budget": None, "epochs": 1}):
        with pytest.raises(InputError, match=r"a pseudo Dice of 0.06', allowed is a model above 0.1; it finds next to"):
            host(SATTrainer, **{**given, **length})
    file = Path(plain.output_folder) / "checkpoint_final.pth"
    young = host(IMATrainer, steps=1, epochs=50, initial_weights=str(file))  # as young as one from scratch may be
    assert young.start.dice == 0.06


def test_a_plain_model_that_does_not_say_its_dice(host: Any, plain: Any) -> None:
    file = _with_dice(plain, None)
    trainer = host(SATTrainer, **{**FINETUNE, "threshold": 0.6, "budget": 0.19})
    trainer.run_training()
    assert f"WARNING: {file} does not say which Dice it has reached" in _log(trainer)


def test_without_a_plain_model(host: Any) -> None:
    with pytest.raises(InputError, match="initial_weights: received 'plain', allowed is a finished plain training of "):
        host(SATTrainer, **FINETUNE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"budget": 1.0, "epochs": 3, "initial_weights": "x"},
            "budget and epochs: .*one of the two.*give budget: none",
        ),
        (
            {"final_weights": "best_robust", "robust_validation_batches": 0},
            "robust_validation_batches: received 0, allowed is at least 1 with final_weights: best_robust",
        ),
        ({"budget": 1.0, "epochs": None}, "budget: received 1.0, allowed is given beside initial_weights"),
        ({"budget": 0.0, "epochs": None}, "budget: received 0"),
        ({"budget": "0h", "epochs": None}, "budget: received '0h', allowed is a number > 0, hours such as 2h or none"),
        ({"initial_lr": "plain"}, "initial_lr: received 'plain', allowed is a number without initial_weights"),
        ({"initial_lr": "fast"}, "initial_lr: received 'fast', allowed is a number > 0, plain or none"),
        ({"initial_lr": 0.0}, "initial_lr: received 0"),
        ({"budget": "2 days", "epochs": None}, "budget: received '2 days', allowed is a number > 0, hours such as 2h"),
    ],
)
def test_settings_that_contradict_each_other(host: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        host(SATTrainer, **settings)


def test_the_first_learning_rate_is_that_of_the_plain_training(host: Any, plain: Any) -> None:
    """Of nnU-Net's optimiser state: 0.03 here. The decay then begins with it, and a run that goes on keeps it."""
    file = Path(plain.output_folder) / "checkpoint_final.pth"
    checkpoint = load_data(file)
    assert checkpoint["optimizer_state"]["param_groups"][0]["initial_lr"] == plain.initial_lr == 0.01
    checkpoint["optimizer_state"]["param_groups"][0]["initial_lr"] = 0.03
    torch.save(checkpoint, file)
    trainer = host(SATTrainer, **FINETUNE, budget=0.19)
    rates: list[float] = []
    step = trainer.on_train_epoch_start
    trainer.on_train_epoch_start = lambda: (step(), rates.append(trainer.optimizer.param_groups[0]["lr"]))
    trainer.run_training()
    assert rates == [0.03, pytest.approx(0.03 * 0.5**0.9)]
    assert "First learning rate 0.03, as in the plain training" in _log(trainer)
    file.unlink()
    again = host(SATTrainer, epochs=None, steps=1)
    again.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    assert again.lr_scheduler.initial_lr == 0.03
    assert host(SATTrainer, epochs=None, initial_lr=0.02).initial_lr == 0.02


@pytest.mark.parametrize("budget", ["0.19", "hours"])
def test_a_run_goes_on_by_the_same_command_wherever_its_start_is_by_then(host: Any, plain: Any, budget: str) -> None:
    """The plain model is gone: nothing but a beginning needs it, and ``--c`` without a checkpoint is one."""
    file = Path(plain.output_folder) / "checkpoint_final.pth"
    given = {**FINETUNE, "budget": 0.19 if budget == "0.19" else f"{0.19 * read_plain(file).hours:.9f}h"}
    first = host(SATTrainer, **given, goes_on=True)
    assert first.start is not None
    first.on_train_start()
    first.save_checkpoint(os.path.join(first.output_folder, "checkpoint_latest.pth"))
    file.unlink()
    again = host(SATTrainer, **given, goes_on=True)
    assert again.start is None
    again.load_checkpoint(os.path.join(first.output_folder, "checkpoint_latest.pth"))
    assert (again.num_epochs, again.current_epoch) == (first.num_epochs, 1)
    assert again.initial_lr == first.initial_lr
    again.on_train_start()
    assert f"Budget {given['budget']}: {first.num_epochs} epochs of 2 steps." in _logs(again)
    (Path(first.output_folder) / "checkpoint_latest.pth").unlink()
    with pytest.raises(InputError, match="initial_weights: received 'plain', allowed is a finished plain training of "):
        host(SATTrainer, **given, goes_on=True)


def test_a_learning_rate_of_another_optimiser_is_not_taken(host: Any, plain: Any) -> None:
    class WithAdam(SATTrainer):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.network.parameters(), self.initial_lr), None

    trainer = host(WithAdam, **FINETUNE, budget=0.19)
    trainer.initialize()
    assert trainer.optimizer.param_groups[0]["lr"] == trainer.initial_lr == 0.01


def test_the_length_of_plain_epochs_is_read(plain: Any) -> None:
    assert json.loads((Path(plain.output_folder) / "debug.json").read_text())["num_iterations_per_epoch"] == "2"
