"""The nnU-Net host on real nnU-Net machinery: plans, loaders, losses, checkpoints."""

from __future__ import annotations

import copy
import errno
import inspect
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch._dynamo.backends.registry import lookup_backend

from monai_adv import InputError
from monai_adv.defenses.ima import IMASettings
from monai_adv.defenses.sat import SATSettings
from monai_adv.tasks import SegmentationSettings
from monai_adv.threats import Threat
from nnunet_trainers import DSBNTrainer, IMATrainer, SATTrainer, robust_trainer
from nnunet_trainers.attacker import attacker_of
from nnunet_trainers.robust_trainer import RobustTrainer
from nnunet_trainers.robustness_log import RobustnessLog
from nnunet_trainers.run_settings import RunSettings
from nnunet_trainers.short_training import short_training
from nnunet_trainers.slice_loader import SliceDataLoader, slices_in_batches
from tests import nnunet_toy as toy
from tests import processes
from tests.nnunet_host import datasets, host, same, started, weights  # noqa: F401  (fixtures)
from tests.places import ROOT


def easy(trainer: Any) -> None:
    """Make the network right from the start: accept any Dice, so that attacks happen in the first step."""
    settings = SegmentationSettings(threshold=1e-6, empty_target="skip")
    trainer.defense.task = replace(trainer.defense.task, settings=settings)
    with torch.no_grad():  # an untrained head may never predict a class at all
        for head in trainer.network.decoder.seg_layers:
            head.bias[1] += 0.5


# ------------------------------------------------------------------ identities


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_strength_zero_is_nnunets_own_training_bit_for_bit(host: Any, configuration: str) -> None:
    plain = started(host(nnUNetTrainer, configuration))
    ours = started(host(IMATrainer, configuration, eps=0, delta=0))
    ours.network.load_state_dict(plain.network.state_dict())
    for _ in range(3):
        batch = next(ours.dataloader_train)
        one, two = plain.train_step(copy.deepcopy(batch)), ours.train_step(copy.deepcopy(batch))
        assert one["loss"] == two["loss"]
    assert same(weights(plain), weights(ours))
    for key, value in plain.optimizer.state_dict()["state"].items():
        assert torch.equal(value["momentum_buffer"], ours.optimizer.state_dict()["state"][key]["momentum_buffer"])
    assert set(ours.validation_step(batch)) == {"loss", "tp_hard", "fp_hard", "fn_hard"}


def test_the_constructor_is_the_hosts(host: Any) -> None:
    assert list(inspect.signature(IMATrainer.__init__).parameters) == list(
        inspect.signature(nnUNetTrainer.__init__).parameters
    )
    trainer = host()
    assert set(trainer.my_init_kwargs) == {"plans", "configuration", "fold", "dataset_json", "device"}
    assert Path(trainer.output_folder_base).name == "IMATrainer__nnUNetPlans__2d"


@pytest.mark.parametrize(
    ("configuration", "kind"),
    [("2d", "labels"), ("3d_fullres", "labels"), ("2d", "ignore"), ("3d_fullres", "ignore"), ("2d", "regions"),
     ("3d_fullres", "regions")],
)  # fmt: skip
def test_every_kind_of_data_is_attacked_within_its_margin(host: Any, configuration: str, kind: str) -> None:
    trainer = started(host(configuration=configuration, kind=kind))
    easy(trainer)
    batch = next(trainer.dataloader_train)
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    loss = trainer.train_step(batch)["loss"]
    assert np.isfinite(loss)
    assert len(seen) > 2
    moved = (seen[-1] - seen[0]).flatten(1)
    rms = moved.square().mean(1).sqrt()
    assert (rms <= 0.02 * (1 + 1e-5)).all()  # delta, the first margin
    assert (rms > 0).any()
    assert trainer.defense.statistics.passes.forward == sum(len(x) for x in seen)


def test_a_cascades_one_hot_channels_are_not_intensities(host: Any, tmp_path: Path) -> None:
    previous = (
        tmp_path / "results" / toy.NAME / "IMATrainer__nnUNetPlans__3d_lowres/predicted_next_stage/3d_cascade_fullres"
    )
    previous.mkdir(parents=True)
    for number in range(6):
        nnUNetDatasetBlosc2.save_seg(toy.case(number)[1][0], str(previous / f"case_{number}"))
    trainer = started(host(configuration="3d_cascade_fullres"))
    easy(trainer)
    assert trainer.defense.threat.channels == (0,)
    batch = next(trainer.dataloader_train)
    assert batch["data"].shape[1] == 3
    seen: list[torch.Tensor] = []
    trainer.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    trainer.train_step(batch)
    assert not torch.equal(seen[-1][:, 0], seen[0][:, 0])
    assert torch.equal(seen[-1][:, 1:], seen[0][:, 1:])


def test_compiled_training_equals_eager(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA, with a backend that runs anywhere: same loss, same margins, weights trained."""
    eager = started(host())
    compile_ = torch.compile
    monkeypatch.setattr(IMATrainer, "_do_i_compile", lambda self: True)
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(
        torch, "compile", lambda model: compile_(model, backend=backend if hasattr(model, "decoder") else "eager")
    )
    torch._dynamo.reset()
    compiled = started(host())
    compiled.network._orig_mod.load_state_dict(eager.network.state_dict())
    easy(eager)
    compiled.defense.task = replace(compiled.defense.task, settings=eager.defense.task.settings)
    compiled.network._orig_mod.load_state_dict(eager.network.state_dict())
    for _ in range(2):
        batch = next(eager.dataloader_train)
        one, two = eager.train_step(copy.deepcopy(batch))["loss"], compiled.train_step(copy.deepcopy(batch))["loss"]
        np.testing.assert_allclose(one, two, rtol=1e-4)
    torch.testing.assert_close(eager.defense.margins.values, compiled.defense.margins.values, atol=1e-3, rtol=0)
    for mine, theirs in zip(weights(eager), compiled.network._orig_mod.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-3)
    for _ in range(4):  # other numbers of attacked and crossed samples
        compiled.train_step(next(eager.dataloader_train))
    with torch.no_grad():
        compiled.on_validation_epoch_start()
        for _ in range(3):
            compiled.validation_step(next(eager.dataloader_val))
    assert len(graphs) <= 4  # training, attack, search, validation: dynamo gives up at 8


# ------------------------------------------------------------------ sample ids


def numbered_dataset(folder: Path) -> nnUNetDatasetBlosc2:
    """Every voxel says which case and slice it is from."""
    for number in range(4):
        image = (number * 100 + np.arange(7, dtype=np.float32))[None, :, None, None] * np.ones(
            (1, 7, 12, 12), np.float32
        )
        labels = np.ones((1, 7, 12, 12), np.int16)
        locations = np.array([[0, z, 6, 6] for z in range(7)])
        nnUNetDatasetBlosc2.save_case(
            image, labels, {"class_locations": {1: locations}}, str(folder / f"case_{number}"), image.shape, image.shape
        )
    return nnUNetDatasetBlosc2(str(folder))


def label_manager() -> Any:
    return PlansManager(toy.plans()).get_label_manager(toy.dataset_json())


# Stopping the host's augmenter, one of its threads may still be reading from a worker that is gone.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_slices_survive_workers_and_repeated_draws(tmp_path: Path, workers: int) -> None:
    from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

    loader = SliceDataLoader(numbered_dataset(tmp_path), 16, (8, 8), (8, 8), label_manager(), 0.33)
    batches = (
        SingleThreadedAugmenter(loader, None) if not workers else NonDetMultiThreadedAugmenter(loader, None, workers)
    )
    drawn = set()
    for _ in range(6):
        batch = next(batches)
        for data, key, number in zip(batch["data"], batch["keys"], batch["slices"], strict=True):
            assert data.unique().tolist() == [int(key[-1]) * 100 + number]
            drawn.add((key, int(number)))
    assert len(drawn) > 20  # of 28: drawn at random, many of them repeatedly
    if workers:
        batches._finish()


def test_in_3d_the_case_is_the_sample(tmp_path: Path) -> None:
    loader = SliceDataLoader(numbered_dataset(tmp_path), 4, (4, 8, 8), (4, 8, 8), label_manager(), 0.33)
    assert loader.generate_train_batch()["slices"].tolist() == [0] * 4


def test_the_hosts_loader_is_put_back() -> None:
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as module

    before = module.nnUNetDataLoader
    with slices_in_batches():
        assert module.nnUNetDataLoader is SliceDataLoader
    assert module.nnUNetDataLoader is before
    with pytest.raises(ZeroDivisionError), slices_in_batches():
        _ = 1 / 0
    assert module.nnUNetDataLoader is before


@pytest.mark.parametrize(("configuration", "samples"), [("2d", 4 * toy.SHAPE[0]), ("3d_fullres", 4)])
def test_margins_are_per_slice_in_2d_and_per_case_in_3d(host: Any, configuration: str, samples: int) -> None:
    trainer = started(host(configuration=configuration))
    assert len(trainer.sample_ids) == samples
    assert list(trainer.sample_ids.groups) == [f"case_{i}" for i in range(4)]


def test_fold_all_uses_every_case(host: Any) -> None:
    assert len(started(host(fold="all")).sample_ids.groups) == 6


# ------------------------------------------------------------------ whole runs, checkpoints, resume


def test_a_run_logs_and_keeps_the_best_robust_checkpoint(host: Any) -> None:
    trainer = host(epochs=3)
    trainer.run_training()
    folder = Path(trainer.output_folder)
    rows = json.loads((folder / "robustness.json").read_text())
    assert [r["epoch"] for r in rows] == [0, 1, 2]
    for name in (
        "attacked",
        "crossed",
        "margin_mean",
        "margin_std",
        "passes_per_sample",
        "robust_dice",
        "mean_fg_dice",
    ):
        assert all(name in r for r in rows)
    names = {p.name for p in folder.iterdir()}
    assert {"checkpoint_final.pth", "checkpoint_best.pth", "checkpoint_best_robust.pth"} <= names
    assert not [n for n in names if n.endswith(".tmp")]
    best = torch.load(folder / "checkpoint_best_robust.pth", weights_only=False)
    emas = [r["robust_dice_ema"] for r in rows[: best["current_epoch"]]]
    assert max(emas) == emas[-1]
    log = next(folder.glob("training_log*")).read_text()
    assert "eps = 0.1" in log
    assert "* steps = 3" in log
    assert "0.1 RMS per voxel (= L2 radius 1.6), no box" in log
    assert "Samples: 20 in 4 cases" in log


def test_resume_starts_from_exactly_what_was_saved(host: Any, tmp_path: Path) -> None:
    first = host(eps=0.3, delta=0.05, random_start=True)
    first.on_train_start()
    easy(first)
    for epoch in range(2):
        first.on_epoch_start()
        first.on_train_epoch_start()
        first.on_train_epoch_end([first.train_step(next(first.dataloader_train)) for _ in range(3)])
        with torch.no_grad():
            first.on_validation_epoch_start()
            first.on_validation_epoch_end([first.validation_step(next(first.dataloader_val))])
        if epoch == 0:
            first.on_epoch_end()
    file = str(tmp_path / "saved.pth")
    first.save_checkpoint(file)
    assert first.defense.margins.values.unique().numel() > 1

    second = host()  # no settings but the short ones: the others come back from the checkpoint
    second.load_checkpoint(file)
    second.on_train_start()
    assert torch.equal(second.defense.margins.values, first.defense.margins.values)
    assert torch.equal(second.defense._generator.get_state(), first.defense._generator.get_state())
    assert same(weights(first), weights(second))
    one, two = first.optimizer.state_dict(), second.optimizer.state_dict()
    assert one["param_groups"] == two["param_groups"]
    for key in one["state"]:
        assert torch.equal(one["state"][key]["momentum_buffer"], two["state"][key]["momentum_buffer"])
    assert second.current_epoch == first.current_epoch + 1
    assert second.sections == first.sections
    assert second.robustness.rows == first.robustness.rows


def test_continuing_with_other_settings_says_what_differs(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    host(eps=0.3).run_training()
    capsys.readouterr()
    file = str(next(Path(os.environ["nnUNet_results"]).rglob("checkpoint_final.pth")))
    other = host(eps=0.2, epochs=5)
    other.load_checkpoint(file)
    said = capsys.readouterr().out
    assert "eps: 0.3 in the checkpoint, 0.2 now" in said
    assert "epochs: 2 in the checkpoint, 5 now" in said
    assert "delta" not in said
    assert other.num_epochs == 5
    assert other.defense.settings.eps == 0.2


def test_the_official_preset_runs_as_a_whole(host: Any) -> None:
    trainer = started(host(preset="official", eps=15, delta=2, unit="norm"))
    assert trainer.optimizer.param_groups[0]["lr"] == 0.01
    trainer.lr_scheduler.step(1)
    assert trainer.optimizer.param_groups[0]["lr"] == 0.01  # constant
    batch = next(trainer.dataloader_train)
    task = trainer.defense.task
    before = dict(vars(task))
    assert np.isfinite(trainer.train_step(batch)["loss"])
    assert trainer.defense.task is task  # a value, which nothing changes
    assert vars(task) == before
    trainer.on_train_epoch_end([{"loss": np.array(1.0)}])
    assert trainer._figures["attacked"] == 1.0  # no gate, empty slices included
    output, target = trainer.network(batch["data"]), batch["target"]
    halves = [slice(0, 2), slice(2, 4)]
    parts = [task.training_loss([o[h] for o in output], [t[h] for t in target]) for h in halves]
    torch.testing.assert_close(sum(parts) / 2, task.training_loss(output, target))  # per sample, not batch Dice


def test_continuing_in_another_unit_is_refused(host: Any) -> None:
    trainer = host()
    trainer.run_training()
    other = host(eps=5, delta=1, unit="norm")
    other.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    with pytest.raises(InputError, match="^norm and unit: received 'l2, norm'"):
        other.on_train_start()


def test_checkpoints_load_without_numpy(host: Any) -> None:
    """MONAI's converter loads with weights_only=True."""
    host().run_training()
    file = next(Path(os.environ["nnUNet_results"]).rglob("checkpoint_final.pth"))
    loaded = torch.load(file, weights_only=True)
    assert loaded["trainer_name"] == "IMATrainer"
    assert loaded["monai_adv"]["settings"]["run"]["epochs"] == 2


def test_the_same_validation_batches_are_attacked_after_every_epoch(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a break, with other ones for another seed, and without a trace in the training."""
    seen: list[torch.Tensor] = []

    def attacked(batch: Any, *others: Any) -> Any:
        seen.append(batch["data"].clone())
        return own(batch, *others)

    own = robust_trainer.attacked
    monkeypatch.setattr(robust_trainer, "attacked", attacked)

    def trained(**given: Any) -> tuple[Any, list[torch.Tensor]]:
        seen.clear()
        np.random.seed(0)  # noqa: NPY002  (the host's)
        torch.manual_seed(0)
        trainer = host(SATTrainer, epochs=3, save_every=1, **given)
        trainer.run_training()
        return trainer, [images.clone() for images in seen]

    first, images = trained(robust_validation_batches=2)
    assert len(images) == 6
    assert not torch.equal(images[0], images[1])
    for one, two in images[2:4], images[4:]:
        assert torch.equal(one, images[0])
        assert torch.equal(two, images[1])
    assert same(weights(first), weights(trained(robust_validation_batches=0)[0]))
    _, others = trained(robust_validation_batches=2, seed=1)
    assert not torch.equal(others[0], images[0])
    seen.clear()
    again = started(host(SATTrainer, epochs=3, robust_validation_batches=2))
    again.on_validation_epoch_start()
    assert torch.equal(seen[0], images[0])


def test_validation_with_the_best_checkpoint_after_training(host: Any) -> None:
    trainer = host()
    trainer.run_training()
    trainer.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_best.pth"))
    best = torch.load(os.path.join(trainer.output_folder, "checkpoint_best.pth"), weights_only=True)
    assert same(weights(trainer), list(best["network_weights"].values()))


def test_fine_tuning_a_plain_model(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    plain = host(nnUNetTrainer)
    plain.run_training()
    file = os.path.join(plain.output_folder, "checkpoint_final.pth")
    heads = [n for n in plain.network.state_dict() if ".seg_layers." in n]

    pretrained = host()
    torch.manual_seed(1)
    pretrained.initialize()
    load_pretrained_weights(pretrained.network, file)  # what -pretrained_weights does: all but the output layers
    for name, value in plain.network.state_dict().items():
        assert torch.equal(pretrained.network.state_dict()[name], value) == (name not in heads or not value.any())

    whole = host(initial_weights=file)
    os.rename(file, file + ".moved")  # it has been read, once
    whole.on_train_start()
    assert same(weights(whole), weights(plain))
    assert f"Fine-tuning from {file}" in capsys.readouterr().out
    whole.run_training()

    again = host()
    again.load_checkpoint(os.path.join(whole.output_folder, "checkpoint_final.pth"))
    assert again.run.initial_weights == file


# ------------------------------------------------------------------ things that go wrong


def message(error: Any) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_voxels_name_the_case(host: Any, value: float) -> None:
    trainer = started(host())
    batch = next(trainer.dataloader_train)
    batch["data"][2, 0, 3, 3] = value
    before = weights(trainer)
    with pytest.raises(InputError) as error:
        trainer.train_step(batch)
    assert f"NaN or infinite voxels in case {batch['keys'][2]}, slice {batch['slices'][2]}" in message(error)
    assert same(before, weights(trainer))


def test_unknown_labels_name_the_case(host: Any) -> None:
    trainer = started(host())
    batch = next(trainer.dataloader_train)
    batch["target"][0][1, 0, 3, 3] = 7
    with pytest.raises(InputError) as error:
        trainer.train_step(batch)
    assert f"7] in case {batch['keys'][1]}" in message(error)
    assert "the plan's labels 0 to 2" in message(error)


def test_bad_settings_leave_no_folder(host: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="^eps: received -1.0"):
        host(eps=-1)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", [None, b"text"])
def test_initial_weights_that_cannot_be_read(host: Any, tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as error:
        host(initial_weights=str(file))
    said = (
        f"initial_weights: received '{file}', allowed is an existing file, such as .../fold_0/checkpoint_final.pth"
        if content is None
        else f"{file}: not a readable nnU-Net checkpoint"
    )
    assert said in message(error)
    assert not (tmp_path / "results").exists()


def test_a_results_folder_that_cannot_be_written(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("nnUNet_results", str(tmp_path / "file" / "results"))
    with pytest.raises(InputError, match="^nnUNet_results: received .*a folder you may write to"):
        host()


class Touches:
    """An object whose unpickling runs code."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


@pytest.mark.parametrize("way", ["initial_weights", "--c", "-pretrained_weights", "short_training"])
def test_reading_a_checkpoint_runs_no_code(host: Any, tmp_path: Path, monkeypatch: Any, way: str) -> None:
    trainer = host()
    trainer.initialize()
    file, proof = tmp_path / "foreign.pth", tmp_path / "ran"
    content = {"trainer_name": "IMATrainer", "network_weights": trainer.network.state_dict(), "monai_adv": {}}
    torch.save({**content, "extra": Touches(proof)}, file)
    monkeypatch.setattr("nnunet_trainers.short_training.get_trainer_from_args", lambda *args, **names: host())
    read = {
        "initial_weights": lambda: host(initial_weights=str(file)),
        "--c": lambda: host().load_checkpoint(str(file)),
        "-pretrained_weights": lambda: maybe_load_checkpoint(trainer, False, False, str(file)),
        "short_training": lambda: short_training("1", "2d", 0, weights=str(file)),
    }[way]
    with pytest.raises(InputError, match="checkpoint: received .*with a Python object .*can run code"):
        read()
    assert not proof.exists()


@pytest.mark.parametrize("plain", [True, False])
def test_pretrained_weights_reach_both_branches(host: Any, plain: bool) -> None:
    """nnUNetv2_train -pretrained_weights with doubled norm layers, from a plain model and from one like itself."""
    source = host(nnUNetTrainer if plain else DSBNTrainer)
    source.run_training()
    file = os.path.join(source.output_folder, "checkpoint_final.pth")
    trainer = host(DSBNTrainer)
    torch.manual_seed(1)
    maybe_load_checkpoint(trainer, False, False, file)
    mine, theirs = trainer.network.state_dict(), source.network.state_dict()
    for name, value in mine.items():
        plain_name = name.replace(".clean.", ".").replace(".noisy.", ".") if plain else name
        if ".seg_layers." not in name:
            assert torch.equal(value, theirs[plain_name]), name
    assert trainer.current_epoch == 0


def test_pretrained_weights_of_another_architecture(host: Any, tmp_path: Path) -> None:
    trainer = host()
    torch.save({"trainer_name": "nnUNetTrainer", "network_weights": {"x": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="^-pretrained_weights: received .*nnU-Net says: Key .* is missing"):
        maybe_load_checkpoint(trainer, False, False, str(tmp_path / "other.pth"))


def test_without_a_gpu_the_sentence_names_the_flag(host: Any, monkeypatch: Any, tmp_path: Path) -> None:
    host()
    results = tmp_path / "other"
    monkeypatch.setenv("nnUNet_results", str(results))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="^-device: received 'cuda'.*add '-device cpu' to nnUNetv2_train"):
        IMATrainer({**toy.plans(), "continue_training": False}, "2d", 0, toy.dataset_json())
    assert not results.exists()


def plain_loader(trainer: Any) -> None:
    """Training with nnU-Net's loader as a user's own get_dataloaders makes it: it does not name slices."""
    from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter

    class TheirLoader(nnUNetDataLoader):
        pass

    def get_dataloaders() -> Any:
        training, validation = trainer.get_tr_and_val_datasets()
        patch = trainer.configuration_manager.patch_size
        scales = trainer._get_deep_supervision_scales()
        loaders = []
        for data in (training, validation):
            transforms = trainer.get_validation_transforms(scales)
            loader = TheirLoader(data, 2, patch, patch, trainer.label_manager, 0.33, transforms=transforms)
            loaders.append(SingleThreadedAugmenter(loader, None))
        return tuple(loaders)

    trainer.get_dataloaders = get_dataloaders


@pytest.mark.parametrize(("configuration", "method"), [("3d_fullres", IMATrainer), ("2d", SATTrainer)])
def test_another_loader_is_enough_where_slices_are_not_needed(host: Any, configuration: str, method: Any) -> None:
    trainer = host(method, configuration)
    plain_loader(trainer)
    started(trainer)
    batch = next(trainer.dataloader_train)
    assert "slices" not in batch
    assert np.isfinite(trainer.train_step(batch)["loss"])


def test_another_loader_that_says_too_little_is_named(host: Any) -> None:
    trainer = host()
    plain_loader(trainer)
    started(trainer)
    with pytest.raises(InputError) as error:
        trainer.train_step(next(trainer.dataloader_train))
    assert "data loader: received \"TheirLoader without the key 'slices' in its batches\"" in message(error)
    assert "SliceDataLoader" in message(error)


def test_loaders_that_do_not_ask_for_our_data_sets(host: Any) -> None:
    batch = {
        "data": torch.zeros(2, 1, 16, 16),
        "target": [torch.zeros(2, 1, n, n) for n in (16, 8)],
        "keys": ["a", "b"],
    }
    for method, needs in ((IMATrainer, True), (SATTrainer, False)):
        trainer = host(method)
        trainer.get_dataloaders = lambda: (iter([batch]), iter([batch]))
        if needs:
            with pytest.raises(InputError, match="without the cases to train with"):
                trainer.on_train_start()
        else:
            assert np.isfinite(started(trainer).train_step(batch)["loss"])


def test_margins_that_are_not_numbers_are_refused(host: Any, tmp_path: Path) -> None:
    first = started(host())
    first.defense.margins.values[3] = np.nan
    first.save_checkpoint(str(tmp_path / "saved.pth"))
    second = host()
    second.load_checkpoint(str(tmp_path / "saved.pth"))
    with pytest.raises(InputError, match="^checkpoint: received 'NaN or infinity in IMA margins values'"):
        second.on_train_start()


def test_an_epoch_without_an_attack_is_said_once(host: Any) -> None:
    trainer = host(threshold=0.99)
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    assert log.count("WARNING: no sample was attacked in this epoch") == 1
    assert "the Dice of none was above `threshold` (0.99)" in log
    assert "`initial_weights` starts from a trained model" in log


def test_the_sentence_is_what_a_command_ends_with(tmp_path: Path) -> None:
    """As nnU-Net's commands, which let every error through."""
    code = "from tests import nnunet_toy as toy\nfrom nnunet_trainers import IMATrainer\ntoy.trainer(IMATrainer)"
    environment = {**os.environ, "MONAI_ADV_EPS": "-1", "nnUNet_results": str(tmp_path), "nnUNet_preprocessed": ""}
    run = processes.run([sys.executable, "-c", code], cwd=ROOT, env=environment)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("monai-adv: eps: received -1.0, allowed is a finite number > 0")
    assert "Traceback" not in run.stderr


def test_another_trainers_checkpoint(host: Any) -> None:
    plain = host(nnUNetTrainer)
    plain.run_training()
    with pytest.raises(InputError) as error:
        host().load_checkpoint(os.path.join(plain.output_folder, "checkpoint_final.pth"))
    assert "of nnUNetTrainer', allowed is a checkpoint of IMATrainer" in message(error)


def test_a_forecast_from_clean_epochs_says_that_attacked_ones_are_dearer(host: Any) -> None:
    """IMA from scratch, K = 3 and 2 searches: 15 forwards, of which an epoch without an attack makes 3."""
    trainer = host(threshold=0.999, iterations=6, searches=2)
    trainer.run_training()
    log = next(Path(trainer.output_folder).glob("training_log*")).read_text()
    said = "Nothing was attacked in this time: once something is, up to {} times as much."
    passes = trainer.robustness.rows[0]["passes_per_sample"]
    lines = [line for line in log.splitlines() if said.format(f"{15 / passes:.2g}") in line]
    assert ["training per epoch" in line for line in lines] == [True, False]
    attacked = host(SATTrainer, iterations=6)
    attacked.run_training()
    assert "in this time" not in next(Path(attacked.output_folder).glob("training_log*")).read_text()


def test_a_finished_run_is_not_gone_on_with_in_place_of_a_later_one(host: Any) -> None:
    """Run A ends; run B begins anew in the same folder and is interrupted: nnU-Net's ``--c`` would load A."""
    earlier = host()
    earlier.run_training()
    folder = Path(earlier.output_folder)
    host(goes_on=True).load_checkpoint(str(folder / "checkpoint_final.pth"))  # its own best is older: nothing to say
    later = started(host(epochs=4, save_every=1))
    later.on_train_epoch_end([later.train_step(next(later.dataloader_train))])
    later.on_validation_epoch_start()
    later.on_validation_epoch_end([later.validation_step(next(later.dataloader_val))])
    later.on_epoch_end()
    said = r"--c: received '.*checkpoint_final.pth beside checkpoint_latest.pth, whose epochs are later', allowed"
    for name in ("checkpoint_latest.pth", "checkpoint_best.pth"):
        with pytest.raises(InputError, match=said.replace("checkpoint_latest.pth", name)):
            host(goes_on=True).load_checkpoint(str(folder / "checkpoint_final.pth"))
        host().load_checkpoint(str(folder / "checkpoint_final.pth"))  # as --val does
        again = host(goes_on=True, epochs=4)
        again.load_checkpoint(str(folder / name))  # as --c does once checkpoint_final.pth is away
        assert again.current_epoch == 1
        (folder / name).unlink()


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_checkpoint(host: Any, damage: str) -> None:
    trainer = host()
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    content = {"cut": file.read_bytes()[:5000], "empty": b"", "text": b"not a checkpoint"}[damage]
    file.write_bytes(content)
    with pytest.raises(InputError) as error:
        host().load_checkpoint(str(file))
    assert "not a readable nnU-Net checkpoint" in message(error)
    assert "--c" in message(error)


def test_margins_of_other_cases(host: Any, datasets: dict[str, Path]) -> None:
    trainer = host()
    trainer.run_training()
    splits = datasets["labels"] / toy.NAME / "splits_final.json"
    original = splits.read_text()
    other = host()
    other.load_checkpoint(os.path.join(trainer.output_folder, "checkpoint_final.pth"))
    try:
        splits.write_text(json.dumps([{"train": ["case_0", "case_1"], "val": ["case_5"]}]))
        with pytest.raises(InputError, match="IMA margins: the checkpoint belongs to 20 other samples"):
            other.on_train_start()
    finally:
        splits.write_text(original)


@pytest.mark.parametrize("where", ["in the middle", "at the end"])
def test_a_full_disk_keeps_the_previous_checkpoint(host: Any, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    trainer = host()
    trainer.run_training()
    file = Path(trainer.output_folder) / "checkpoint_final.pth"
    before = file.read_bytes()

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def short(checkpoint: Any, target: Any) -> None:
        if not isinstance(target, io.BytesIO):  # nnU-Net's dict goes through memory
            target.write(b"half a file")
            raise RuntimeError("No space left on device: unexpected pos 64 vs 0")  # torch's own report
        save(checkpoint, target)

    save = torch.save
    monkeypatch.setattr(os, "fsync", full)
    if where == "in the middle":
        monkeypatch.setattr(torch, "save", short)
    with pytest.raises(InputError) as error:
        trainer.save_checkpoint(str(file))
    assert "No space left on device" in message(error)
    assert "the previous checkpoint is intact" in message(error)
    assert file.read_bytes() == before
    assert not list(file.parent.glob("*.tmp"))


KILLED = """
import sys
from tests import nnunet_toy as toy
from tests.nnunet_host import datasets, host, same, started, weights  # noqa: F401  (fixtures)
from nnunet_trainers import IMATrainer
trainer = toy.trainer(IMATrainer)
trainer.run_training()
"""


def test_kill_9_loses_at_most_the_epochs_since_the_last_checkpoint(host: Any) -> None:
    """Killed at a random moment of a run that saves after every epoch: the file loads, and it is the last one saved."""
    host(epochs=1000, iterations=1, validation_iterations=1, save_every=1, robust_validation_batches=0)
    results = Path(os.environ["nnUNet_results"])
    process = subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    epoch = -1
    for line in process.stdout:
        if ": Epoch " in line and line.rstrip()[-1].isdigit():
            epoch = int(line.split()[-1])
        if epoch >= 4:
            break
    time.sleep(float(np.random.default_rng().uniform(0, 0.5)))
    process.send_signal(signal.SIGKILL)
    rest = process.communicate()[0]
    started_epochs = [epoch] + [int(r.split()[-1]) for r in rest.splitlines() if ": Epoch " in r and r[-1].isdigit()]
    trainer = host(epochs=1000)
    trainer.load_checkpoint(str(next(results.rglob("checkpoint_latest.pth"))))
    # Epoch n starts after epoch n - 1 is saved: n epochs are done, or n + 1 if it ended unseen.
    assert started_epochs[-1] <= trainer.current_epoch <= started_epochs[-1] + 1
    trainer.on_train_start()
    assert len(trainer.defense.margins.values) == 20


KILLED_WHILE_SAVING = """
import os, signal
from tests import nnunet_toy as toy
from tests.nnunet_host import datasets, host, same, started, weights  # noqa: F401  (fixtures)
from nnunet_trainers import IMATrainer
trainer = toy.trainer(IMATrainer)
fsync = os.fsync
def kill(descriptor):
    if trainer.current_epoch == 2:  # the third epoch: earlier ones are saved
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = kill
trainer.run_training()
"""


def test_kill_9_while_saving_keeps_the_previous_checkpoint(host: Any) -> None:
    host(epochs=1000, iterations=1, validation_iterations=1, save_every=1, robust_validation_batches=0)
    killed = processes.run([sys.executable, "-c", KILLED_WHILE_SAVING], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    file = next(Path(os.environ["nnUNet_results"]).rglob("checkpoint_latest.pth"))
    assert list(file.parent.glob("*.tmp"))
    trainer = host(epochs=1000)
    trainer.load_checkpoint(str(file))
    assert trainer.current_epoch == 2  # two epochs done, the third was being saved
    trainer.on_train_start()
    assert not list(file.parent.glob("*.tmp"))


def test_the_log_forgets_epochs_that_are_repeated_after_a_resume() -> None:
    log = RobustnessLog()
    for epoch, dice in enumerate((0.1, 0.5, 0.0)):
        log.add(epoch, {"robust_dice": dice})
    assert not log.last_is_best()
    log.add(1, {"robust_dice": 0.9})
    assert [r["epoch"] for r in log.rows] == [0, 1]
    assert log.rows[1]["robust_dice_ema"] == pytest.approx(0.9 * 0.1 + 0.1 * 0.9)
    assert log.last_is_best()


@pytest.mark.parametrize("eps", [0.25, None])
def test_the_validation_is_attacked_within_the_box_of_the_training(eps: float | None) -> None:
    threat = Threat("linf", 0.5, (-1.0, 2.0), channels=(1,), beyond="keep_ends")
    attacker = SimpleNamespace(validation=SimpleNamespace(eps=eps or 0.5))
    trainer: Any = SimpleNamespace(threat=lambda: threat, attacker=attacker)
    expected = Threat("linf", eps or 0.5, (-1.0, 2.0), channels=(1,), beyond="keep_ends")
    assert RobustTrainer._validation_threat(trainer) == expected


def _plan(*schemes: str) -> Any:
    """What is read of a plan: an organ of CT whose foreground has a standard deviation of 210 HU."""
    configuration = SimpleNamespace(normalization_schemes=list(schemes))
    intensities = {str(c): {"std": 210.0} for c in range(len(schemes))}
    return SimpleNamespace(
        get_configuration=lambda name: configuration, foreground_intensity_properties_per_channel=intensities
    )


@pytest.mark.parametrize(("norm", "unit"), [("linf", "norm"), ("l2", "rms")])
def test_21_hu_are_a_tenth_where_the_plan_divides_by_210(norm: Any, unit: str) -> None:
    """Closed form: 21 / 210 = 0.1, so the attack is the same, bit for bit."""
    raw = {"defense": SATSettings(norm=norm, eps=21, unit="raw"), "run": RunSettings(robust_validation_eps=42)}
    attacker = attacker_of(raw, _plan("CTNormalization"), "2d")
    assert attacker.raw_unit == 210.0
    assert attacker.training.ascent() == SATSettings(norm=norm, eps=0.1).ascent()
    assert (attacker.training.unit, attacker.validation.eps) == (unit, 0.2)
    ima = IMASettings(norm=norm, eps=21, delta=4.2, unit="raw")
    found = attacker_of({**raw, "defense": ima}, _plan("CTNormalization"), "2d").training
    assert (found.eps, found.growth) == (0.1, 4.2 / 210)


def test_raw_radii_need_one_factor() -> None:
    sections = {"defense": SATSettings(eps=21, unit="raw"), "run": RunSettings()}
    for schemes in (["ZScoreNormalization"], ["CTNormalization", "ZScoreNormalization"]):
        with pytest.raises(InputError) as error:
            attacker_of(sections, _plan(*schemes), "2d")
        assert str(error.value) == (
            f"unit: received 'raw', allowed is 'rms' or 'norm' here; {', '.join(schemes)} scales cases or channels "
            "differently, so raw has no one factor: give the radius in units of the normalised image."
        )


def test_the_radius_of_the_validation_is_checked_like_that_of_the_training() -> None:
    sections = {"defense": SATSettings(eps=0.1), "run": RunSettings(robust_validation_eps=15)}
    with pytest.raises(InputError, match="^eps: received 15.0, allowed is at most 1 in the unit rms"):
        attacker_of(sections, _plan("ZScoreNormalization"), "2d")
