"""The MONAI host: off means identical, ids, resume, ranks, accumulation, logs, robust metric, bundles, bad input."""

from __future__ import annotations

import copy
import inspect
import json
import logging
import pickle
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
import torch.multiprocessing as mp
from ignite.engine import Events
from monai.data import CacheDataset, DataLoader, PersistentDataset, SmartCacheDataset
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointLoader, CheckpointSaver, StatsHandler, TensorBoardStatsHandler, ValidationHandler
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.losses import DiceLoss
from monai.transforms import RandSpatialCropSamplesd, ScaleIntensityRanged
from torch import Tensor, nn

from monai_adv import InputError, engines
from monai_adv.attacks import FGSM, PGD
from monai_adv.defenses import METHODS, Batch, Defense, LossPart, Method
from monai_adv.defenses.ima import IMA, IMASettings
from monai_adv.defenses.sat import SATSettings
from monai_adv.engines import IMATrainer, RobustMetric, RobustState, RobustTrainer, SATTrainer, indexed
from monai_adv.tasks import ClassificationTask, SegmentationTask
from monai_adv.threats import Threat
from tests import monai_engine_toys as toys
from tests.places import ROOT

accumulates = pytest.mark.skipif(
    "accumulation_steps" not in inspect.signature(SupervisedTrainer.__init__).parameters,
    reason="MONAI accumulates gradients from 1.6 on",
)

Item = dict[str, Any]


def margins(engine: Any) -> list[float]:
    return engine.defense.margins.values.tolist()


def equal(first: Any, second: Any) -> bool:
    """Whether two nested states are the same, bit for bit."""
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return set(first) == set(second) and all(equal(first[k], second[k]) for k in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(equal(a, b) for a, b in zip(first, second, strict=True))
    return bool(first == second)


def record(engine: Any) -> list[str]:
    """The events inside iterations, in their order."""
    events: list[str] = []
    for name in ("FORWARD", "LOSS", "BACKWARD", "MODEL"):
        engine.add_event_handler(IterationEvents[f"{name}_COMPLETED"], lambda _, name=name: events.append(name))
    return events


# -------------------------------------------------------------------- the classes


def test_a_trainer_for_every_method() -> None:
    for method in METHODS.values():
        cls = getattr(engines, method.trainer)
        assert issubclass(cls, RobustTrainer)
        assert cls.method is method
        assert cls.__name__ == method.trainer
        assert pickle.loads(pickle.dumps(cls)) is cls
        assert method.name in cls.__doc__


# -------------------------------------------------------------------- off means identical


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=accumulates)])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_switched_off_it_is_supervised_trainer_bit_for_bit(kind: str, accumulation: int) -> None:
    """Weights, batch statistics, optimiser, every loss, and the outputs that handlers see, with their meta data."""
    seen: dict[type, list[Any]] = {SupervisedTrainer: [], IMATrainer: []}
    ends = []
    for cls, settings in ((SupervisedTrainer, {}), (IMATrainer, {"settings": toys.OFF})):
        if kind == "classification":
            data, network, loss = toys.class_list(), toys.noisy_classifier(), nn.CrossEntropyLoss()
        else:
            data, network, loss = toys.segment_list(), toys.segmenter(), toys.dice_loss()
        torch.manual_seed(7)
        batches = toys.loader(data, 3, shuffle=True, transform=toys.keep_meta())
        engine = toys.trainer(cls, batches, network, loss=loss, epochs=2, accumulation_steps=accumulation, **settings)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e, cls=cls: seen[cls].append(e.state.output))
        engine.run()
        ends.append((toys.weights(network), engine.optimizer.state_dict()["state"], torch.rand(1)))
    assert toys.same(ends[0][0], ends[1][0])
    momenta = [[v["momentum_buffer"] for v in end[1].values()] for end in ends]
    assert all(torch.equal(a, b) for a, b in zip(*momenta, strict=True))
    assert torch.equal(ends[0][2], ends[1][2])  # the random stream is where it would be
    assert len(seen[IMATrainer]) == 6
    for theirs, ours in zip(seen[SupervisedTrainer], seen[IMATrainer], strict=True):
        for a, b in zip(theirs, ours, strict=True):
            assert set(a) == set(b)
            assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in ("image", "label", "loss"))
            assert torch.equal(a["pred"], b["pred"])
            assert type(a["pred"]) is type(b["pred"])
            assert str(a["pred"].meta) == str(b["pred"].meta)


def test_mixed_precision_is_ignored_on_a_cpu_as_monai_does() -> None:
    ends = []
    for amp in (False, True):
        engine = toys.trainer(IMATrainer, toys.class_list(0.3), settings=toys.MARGINS, amp=amp)
        engine.run()
        ends.append(engine)
    assert toys.same(ends[0].network.state_dict(), ends[1].network.state_dict())
    assert margins(ends[0]) == margins(ends[1])


# -------------------------------------------------------------------- ids


def data_set(name: str, data: list[Item], folder: Path) -> Any:
    transform = toys.keep_meta()
    if name == "cache":
        return CacheDataset(data, transform, progress=False)
    if name == "persistent":
        return PersistentDataset(data, transform, cache_dir=folder)
    if name == "smart":
        return SmartCacheDataset(data, transform, replace_rate=0.5, cache_num=4, progress=False)
    return data


@pytest.mark.parametrize("name", ["dataset", "cache", "persistent"])
def test_margins_follow_their_samples_through_shuffling(name: str, tmp_path: Path) -> None:
    """Far from the boundary no attack crosses it: a margin is 0.125 plus 0.125 for every visit, exactly."""
    batches = toys.loader(data_set(name, toys.class_list(30.0), tmp_path), 3, shuffle=True)
    engine = toys.trainer(IMATrainer, batches, epochs=2, lr=0.0, settings=toys.MARGINS)
    visits = torch.zeros(toys.COUNT)
    checked = 0

    def compare() -> None:
        nonlocal checked
        visits[torch.tensor([item["index"] for item in engine.state.batch])] += 1
        assert margins(engine) == (0.125 + 0.125 * visits).tolist()
        checked += 1

    engine.add_event_handler(Events.ITERATION_COMPLETED, compare)
    engine.run()
    assert checked == 6
    assert margins(engine) == [0.375] * toys.COUNT
    assert engine.state.metrics["defense/margin_mean"] == 0.375


def test_smart_cache_hands_out_half_of_the_data() -> None:
    dataset = data_set("smart", toys.class_list(30.0), Path())
    engine = toys.trainer(IMATrainer, DataLoader(dataset, batch_size=4), lr=0.0, settings=toys.MARGINS)
    engine.run()
    assert sorted(margins(engine)) == [0.125] * 4 + [0.25] * 4


def test_file_names_are_ids_where_there_is_no_index(tmp_path: Path) -> None:
    data = toys.file_list(tmp_path, toys.class_list(30.0, index=False))
    batches = toys.loader(data[::-1], 8, transform=toys.load_files())
    engine = toys.trainer(IMATrainer, batches, lr=0.0, settings=toys.MARGINS, epochs=2)
    assert list(engine.defense.margins.ids.groups) == [f"image_{i}.npy" for i in range(8)]  # wherever the folder is
    engine.defense.margins.values[3] = 0.5
    engine.run()
    assert margins(engine) == [0.75 if i == 3 else 0.375 for i in range(8)]


def test_crops_of_an_image_share_its_id() -> None:
    """Repeated draws of a step are averaged: two crops that stay right are one visit."""
    board = 5.0 * (1 - 2 * (torch.arange(16).view(1, 4, 4) + torch.arange(4).view(1, 4, 1)).remainder(2))
    data = [{"image": board, "label": (board > 0).float(), "index": i} for i in range(toys.COUNT)]
    crops = RandSpatialCropSamplesd(["image", "label"], (2, 2), num_samples=2, random_size=False)
    engine = toys.trainer(
        IMATrainer, toys.loader(data, 2, transform=crops), threshold_network()[0], loss=toys.dice_loss(), lr=0.0,
        settings=toys.MARGINS,
    )  # fmt: skip
    shapes: set[Any] = set()
    engine.add_event_handler(
        IterationEvents.FORWARD_COMPLETED, lambda e: shapes.add(tuple(e.state.output["image"].shape))
    )
    engine.run()
    assert shapes == {(4, 1, 2, 2)}
    assert margins(engine) == [0.25] * toys.COUNT


def test_missing_ids_say_how_to_add_them() -> None:
    """Where the trainer cannot number the items itself: the cache hands out other items at the same positions."""
    transform = lambda item: {**item, "image": torch.ones(1, 4, 4)}  # noqa: E731
    files = [{"image": f"{i}.npy", "label": 0} for i in range(8)]
    for data, error in (
        (toys.class_list(index=False), "dictionary with 'index'.*IMA keeps a number.*indexed"),
        (files, "images without file names.*indexed"),
    ):
        dataset = SmartCacheDataset(data, transform, replace_rate=0.5, cache_num=4, progress=False)
        engine = toys.trainer(IMATrainer, toys.loader(dataset))
        with pytest.raises(InputError, match=f"(?s){error}"):
            engine.run()


def test_indexed_is_what_the_message_asks_for() -> None:
    engine = toys.trainer(IMATrainer, indexed(toys.class_list(30.0, index=False)), lr=0.0, settings=toys.MARGINS)
    engine.run()
    assert margins(engine) == [0.25] * toys.COUNT


def test_methods_without_memory_need_no_ids() -> None:
    engine = toys.trainer(SATTrainer, toys.class_list(index=False), settings={"eps": 0.1})
    engine.run()
    assert engine.state.metrics["defense/attacked"] == 1.0


@pytest.mark.parametrize("bad", [99, -1])
def test_more_ids_than_announced(bad: int) -> None:
    data = toys.class_list()
    batches = toys.loader(data, transform=lambda item: {**item, "index": bad if item["index"] == 5 else item["index"]})
    engine = toys.trainer(IMATrainer, batches)
    with pytest.raises(InputError, match="positions from 0 to 7.*8 samples were announced"):
        engine.run()


def test_ids_that_are_no_positions() -> None:
    batches = toys.loader(toys.class_list(), transform=lambda item: {**item, "index": 0.5})
    with pytest.raises(InputError, match="whole numbers"):
        toys.trainer(IMATrainer, batches).run()


def test_unknown_files(tmp_path: Path) -> None:
    data = toys.file_list(tmp_path, toys.class_list(index=False))
    batches = toys.loader(data, transform=toys.load_files())
    engine = toys.trainer(IMATrainer, batches)
    data[0]["image"], other = str(tmp_path / "other.npy"), data[0]["image"]
    Path(other).rename(tmp_path / "other.npy")
    with pytest.raises(InputError, match="other.npy.*one of the 8 files"):
        engine.run()


def test_an_iterable_without_length_needs_the_number_of_samples() -> None:
    data = toys.class_list(30.0)
    batch = {k: torch.stack([torch.as_tensor(d[k]) for d in data]) for k in ("image", "label", "index")}
    given = {"settings": toys.MARGINS, "lr": 0.0, "task": "classification", "epoch_length": 1}
    common = {"device": "cpu", "max_epochs": 1, "loss_function": nn.CrossEntropyLoss()}

    def make(**more: Any) -> Any:
        network = toys.Classifier()
        lr = given["lr"]
        return IMATrainer(
            train_data_loader=[batch], network=network, optimizer=torch.optim.SGD(network.parameters(), lr),
            settings=given["settings"], task=given["task"], epoch_length=1, **common, **more,
        )  # fmt: skip

    with pytest.raises(InputError, match="num_samples"):
        make()
    engine = make(num_samples=8)
    engine.run()
    assert margins(engine) == [0.25] * 8


# -------------------------------------------------------------------- state and resume

RESUMED = {
    "eps": 1.0,
    "delta": 0.25,
    "margin_rule": "always_shrink",
    "unit": "norm",
    "steps": 4,
    "random_start": True,
}


def resumable(folder: Path, epochs: int, how: str, resume: bool) -> Any:
    network = toys.Classifier()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    state = RobustState() if how == "config item" else RobustState(folder / "robust_state.pt")
    handlers: list[Any] = []
    saved: dict[str, Any] = {"network": network, "optimizer": optimizer}
    if how == "config item":
        saved["defense"] = state
    saver = CheckpointSaver(str(folder), saved, save_final=True, final_filename="last.pt")
    handlers.append(saver)
    if resume:
        loader = CheckpointLoader(str(folder / "last.pt"), saved)
        handlers.append(loader)
    batches = toys.loader(toys.class_list(0.1), 3, shuffle=True)
    engine = toys.trainer(
        IMATrainer, batches, network, optimizer=optimizer, epochs=epochs, settings=RESUMED, state=state,
        train_handlers=handlers,
    )  # fmt: skip
    saved["trainer"] = engine
    return engine


@pytest.mark.parametrize("how", ["config item", "file"])
def test_resuming_equals_training_on(how: str, tmp_path: Path) -> None:
    whole = resumable(tmp_path / "whole", 2, how, resume=False)
    whole.run()
    assert len(set(margins(whole))) > 2  # a state worth saving
    resumable(tmp_path / "parts", 1, how, resume=False).run()
    second = resumable(tmp_path / "parts", 2, how, resume=True)
    second.run()
    assert second.state.epoch == 2
    assert toys.same(whole.network.state_dict(), second.network.state_dict())
    assert margins(whole) == margins(second)
    assert torch.equal(whole.defense.state_dict()["generator"], second.defense.state_dict()["generator"])


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda m: m.name)
def test_every_method_resumes(method: Method, kind: Any, tmp_path: Path) -> None:
    """One epoch and one more are two epochs, bit for bit: weights, batch statistics, state of the defence."""
    if kind in method.not_for:
        with pytest.raises(InputError, match=re.escape(method.not_for[kind])):
            toys.trainer(getattr(engines, method.trainer), toys.segment_list(), toys.segmenter(), task=kind)
        return

    def train(folder: str, epochs: int, resume: bool = False) -> Any:
        segments = kind == "segmentation"
        network = toys.segmenter() if segments else toys.noisy_classifier()
        data = toys.segment_list() if segments else toys.class_list(0.1)
        optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
        saved: dict[str, Any] = {"network": network, "optimizer": optimizer, "defense": RobustState()}
        handlers: list[Any] = [CheckpointSaver(str(tmp_path / folder), saved, save_final=True, final_filename="c.pt")]
        if resume:
            handlers.append(CheckpointLoader(str(tmp_path / folder / "c.pt"), saved))
        torch.manual_seed(5)  # of modules that the method adds
        engine = toys.trainer(
            getattr(engines, method.trainer), toys.loader(data, shuffle=True), network, optimizer=optimizer,
            loss=toys.dice_loss() if segments else None, epochs=epochs, state=saved["defense"], train_handlers=handlers,
        )  # fmt: skip
        saved["trainer"] = engine
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: torch.manual_seed(e.state.epoch))  # dropout
        engine.run()
        return engine

    whole = train("whole", 2)
    train("parts", 1)
    parts = train("parts", 2, resume=True)
    assert parts.state.epoch == 2
    assert toys.same(whole.network.state_dict(), parts.network.state_dict())
    assert equal(whole.defense.state_dict(), parts.defense.state_dict())
    fresh = toys.segmenter() if kind == "segmentation" else toys.noisy_classifier()
    assert not toys.same(whole.network.state_dict(), fresh.state_dict())


def test_resume_before_the_task_is_known() -> None:
    """Labels that are made by a transform: the defence comes with the first batch, and what was loaded waits for it."""
    data = [{**item, "label": "benign"} for item in toys.class_list(30.0)]
    transform = lambda item: {**item, "label": int(item["index"] >= 4)}  # noqa: E731
    first = toys.trainer(IMATrainer, toys.loader(data, transform=transform), lr=0.0, settings=toys.MARGINS)
    assert first.defense is None
    first.run()
    state = RobustState()
    state.load_state_dict(first.robust_state.state_dict())
    second = toys.trainer(
        IMATrainer, toys.loader(data, transform=transform), lr=0.0, settings=toys.MARGINS, state=state
    )
    second.run()
    assert margins(second) == [0.375] * toys.COUNT


def test_state_of_another_method_or_of_other_samples_is_refused() -> None:
    sat = toys.trainer(SATTrainer, toys.class_list())
    ima = toys.trainer(IMATrainer, toys.class_list())
    with pytest.raises(InputError, match="received 'that of SAT', allowed is that of IMA"):
        ima.robust_state.load_state_dict(sat.robust_state.state_dict())
    fewer = toys.trainer(IMATrainer, toys.class_list()[:5])
    with pytest.raises(InputError, match="other samples"):
        ima.robust_state.load_state_dict(fewer.robust_state.state_dict())
    with pytest.raises(InputError, match="what a RobustState saved"):
        ima.robust_state.load_state_dict({"head.weight": torch.ones(1)})


def test_a_state_file_belongs_to_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bundles do not restore the trainer's epoch; what says that a training goes on are its weights."""
    file = tmp_path / "models" / "robust_state.pt"
    data = toys.class_list(30.0)
    first = toys.trainer(IMATrainer, data, settings=toys.MARGINS, state=file)
    first.run()
    resumed = toys.trainer(IMATrainer, data, first.network, settings=toys.MARGINS, state=str(file))
    resumed.run()
    assert margins(resumed) == [0.375] * toys.COUNT
    with caplog.at_level(logging.WARNING):
        anew = toys.trainer(IMATrainer, data, settings=toys.MARGINS, state=file)
        anew.run()
    assert margins(anew) == [0.25] * toys.COUNT
    assert "belongs to other weights, those after its epoch 1: this training starts with a new" in caplog.text
    # A checkpoint has brought the state: it goes on, whatever the file says.
    caplog.clear()
    loaded = toys.trainer(IMATrainer, data, settings=toys.MARGINS, state=file)
    loaded.robust_state.load_state_dict(resumed.robust_state.state_dict())
    with caplog.at_level(logging.INFO):
        loaded.run()
    assert margins(loaded) == [0.5] * toys.COUNT
    assert "will be overwritten: the state goes on as it is" in caplog.text
    assert "new state" not in caplog.text
    file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="robust_state.pt.*move it away"):
        toys.trainer(IMATrainer, data, settings=toys.MARGINS, state=file).run()


def test_changed_settings_are_told(caplog: pytest.LogCaptureFixture) -> None:
    first = toys.trainer(IMATrainer, toys.class_list(), settings=toys.MARGINS)
    second = toys.trainer(IMATrainer, toys.class_list(), settings={**toys.MARGINS, "steps": 7})
    with caplog.at_level(logging.INFO):
        second.robust_state.load_state_dict(first.robust_state.state_dict())
    assert "steps: 4 in the checkpoint, 7 now" in caplog.text


# -------------------------------------------------------------------- ranks and micro batches


@pytest.mark.slow
def test_two_ranks_equal_one_process(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(toys.ddp_worker, args=(port, str(tmp_path)), nprocs=2, join=True)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert toys.same(first["network"], second["network"])
    assert torch.equal(first["margins"], second["margins"])
    assert first["metrics"] == second["metrics"]
    assert first["robust"] == second["robust"]
    assert first["largest"] == second["largest"] == 1 / 3
    assert first["announced"] == second["announced"] == [8, 8]
    assert first["refusal"] == second["refusal"]
    assert "received 'weights that differ between the ranks'" in first["refusal"]

    alone = toys.trainer(IMATrainer, toys.loader(toys.class_list(0.3)), epochs=2, settings=toys.DDP_SETTINGS)
    alone.run()
    for name, value in alone.network.state_dict().items():
        torch.testing.assert_close(value, first["network"][name])
    torch.testing.assert_close(alone.defense.margins.values, first["margins"])
    assert first["metrics"]["defense/attacked"] == pytest.approx(alone.state.metrics["defense/attacked"])
    assert first["metrics"]["defense/attacked"] > 0
    validation = toys.evaluator(alone.network, toys.class_list(0.3), RobustMetric(eps=1.0, unit="norm"))
    validation.run()
    assert first["robust"] == pytest.approx(validation.state.metrics["robust"])
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    assert torch.equal(saved["state"]["defense"]["margins"]["values"], first["margins"])


@accumulates
@pytest.mark.parametrize("cls", [IMATrainer, SATTrainer])
def test_micro_batches_add_up_to_a_batch(cls: type[RobustTrainer]) -> None:
    """Three batches of two are a batch of six: the loss is a mean over samples, and so is its gradient."""
    ends = []
    settings = {"eps": 0.5, "unit": "norm", "steps": 4, **({"start": "clean"} if cls is SATTrainer else {})}
    data = [{**d, "image": d["image"].double()} for d in toys.class_list(0.3)[1:7]]
    for size, steps in ((2, 3), (6, 1)):
        network = toys.Classifier().double()
        engine = toys.trainer(
            cls, toys.loader(data, size), network, epochs=3, settings=settings, accumulation_steps=steps
        )
        updates: list[int] = []
        engine.optimizer.register_step_post_hook(lambda *_, updates=updates: updates.append(1))
        engine.run()
        assert len(updates) == 3
        ends.append(engine)
    for a, b in zip(*(e.network.parameters() for e in ends), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(next(ends[0].network.parameters()), toys.Classifier().head.weight)


class Twice(Defense):
    """Two weight updates per batch, each on the clean loss."""

    def losses(self, network: nn.Module, batch: Batch) -> Any:
        self.begin(batch)
        for _ in range(2):
            output = network(batch.images)
            yield LossPart(self.task.training_loss(output, batch.target), output.detach(), update=True)


def test_several_updates_per_batch_are_several_steps() -> None:
    data = toys.class_list(0.3)
    engine = toys.trainer(RobustTrainer, toys.loader(data, 8), defense=Twice(ClassificationTask()))
    events = record(engine)
    engine.run()
    plain = toys.trainer(SupervisedTrainer, toys.loader(data, 8), epochs=2)
    plain.run()
    assert toys.same(engine.network.state_dict(), plain.network.state_dict())
    assert events == ["BACKWARD", "BACKWARD", "FORWARD", "LOSS", "MODEL"]  # gradients can be clipped before each step


@accumulates
def test_several_updates_per_batch_are_not_accumulated() -> None:
    data = toys.class_list(0.3)
    split = toys.trainer(RobustTrainer, data, defense=Twice(ClassificationTask()), accumulation_steps=2)
    with pytest.raises(InputError, match="accumulation_steps: received 2.*1 with Twice"):
        split.run()


# -------------------------------------------------------------------- events, output, logs


def test_events_and_output_are_those_of_supervised_trainer() -> None:
    engine = toys.trainer(IMATrainer, toys.loader(toys.class_list(30.0), 8), settings=toys.MARGINS, decollate=False)
    events = record(engine)
    clean = toys.Classifier()(torch.stack([d["image"] for d in toys.class_list(30.0)]))
    engine.run()
    assert events == ["FORWARD", "LOSS", "BACKWARD", "MODEL"]
    output = engine.state.output
    assert torch.equal(output["pred"], clean)
    assert set(output) == {"image", "label", "pred", "loss"}
    assert output["loss"].ndim == 0


def test_gradients_can_be_clipped_on_backward_completed() -> None:
    engine = toys.trainer(IMATrainer, toys.class_list(0.3), settings=toys.MARGINS)
    engine.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED, lambda: nn.utils.clip_grad_norm_(engine.network.parameters(), 0.0)
    )
    engine.run()
    assert toys.same(engine.network.state_dict(), toys.Classifier().state_dict())


def test_figures_reach_handlers_of_the_same_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Writer:
        def __init__(self) -> None:
            self.rows: list[tuple[str, float, int]] = []

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.rows.append((tag, value, step))

        def flush(self) -> None: ...

    writer = Writer()
    handlers = [
        StatsHandler(iteration_log=False, name=None),
        TensorBoardStatsHandler(writer, iteration_log=False),  # type: ignore[arg-type]
    ]
    with caplog.at_level(logging.INFO):
        engine = toys.trainer(
            IMATrainer, toys.class_list(30.0), lr=0.0, epochs=2, settings=toys.MARGINS, train_handlers=handlers
        )
        engine.run()
    assert ("defense/margin_mean", 0.25, 1) in writer.rows
    assert ("defense/margin_mean", 0.375, 2) in writer.rows
    assert "defense/margin_mean: 0.3750" in caplog.text
    assert "* eps = 1.0" in caplog.text
    assert "classification, from labels (4,) and network outputs (4, 2)" in caplog.text
    assert "Sample ids: positions under 'index', 8 samples" in caplog.text


def test_epochs_are_counted_from_0() -> None:
    seen: list[int] = []

    class Told(Twice):
        def on_epoch_start(self, epoch: int, epochs: int | None = None) -> None:
            seen.append(epoch)

    toys.trainer(RobustTrainer, toys.class_list(), defense=Told(ClassificationTask()), epochs=2).run()
    assert seen == [0, 1]


# -------------------------------------------------------------------- settings and tasks


def test_settings_from_file_variable_and_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ima.yaml").write_text("eps: 0.5\nsteps: 3\nsearches: 4\n")
    monkeypatch.setenv("MONAI_ADV_SETTINGS", str(tmp_path / "ima.yaml"))
    monkeypatch.setenv("MONAI_ADV_STEPS", "5")
    monkeypatch.setenv("MONAI_ADV_SEARCHES", "6")
    settings = toys.trainer(IMATrainer, toys.class_list(), settings={"searches": 7}).defense.settings
    assert (settings.eps, settings.steps, settings.searches) == (0.5, 5, 7)


def test_a_preset_leaves_out_what_belongs_to_others(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        engine = toys.trainer(IMATrainer, toys.class_list(), settings={"preset": "official", "steps": 3})
        engine.run()
    assert engine.defense.settings.algorithm == 2
    assert engine.defense.settings.steps == 3
    assert "left out of the preset: absent_classes, amp, attack_deep_supervision" in caplog.text
    segment = toys.trainer(
        IMATrainer, toys.segment_list(), toys.segmenter(), loss=toys.dice_loss(),
        settings={"preset": "official", "attack_deep_supervision": False},
    )  # fmt: skip
    assert segment.defense.task.settings.dice == "max"


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"settings": {"epz": 1}}, "epz: unknown setting; did you mean 'eps'?"),
        ({"settings": {"threshold": 0.5}}, "threshold: unknown setting"),
        ({"settings": {"eps": -1}}, "eps: received -1"),
        ({"settings": {"preset": "pink"}}, "preset: received 'pink'"),
        ({"task": "detection"}, "task: received 'detection'"),
        ({"iteration_update": print}, "iteration_update"),
        ({"inferer": SlidingWindowInferer((2, 2))}, "SlidingWindowInferer"),
        ({"defense": Twice(ClassificationTask())}, "defense: received 'Twice', allowed is IMA"),
        ({"defense": IMA(ClassificationTask()), "settings": {}}, "one or the other"),
    ],
)
def test_bad_arguments_end_before_training(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as raised:
        toys.trainer(IMATrainer, toys.class_list(), **given)
    assert error in str(raised.value)


def test_bad_settings_do_not_wait_for_the_task() -> None:
    data = [{**item, "label": "benign"} for item in toys.class_list()]
    with pytest.raises(InputError, match="epz: unknown setting"):
        toys.trainer(IMATrainer, data, settings={"epz": 1})


def test_the_base_needs_a_method_or_a_defense() -> None:
    with pytest.raises(InputError, match="IMATrainer"):
        toys.trainer(RobustTrainer, toys.class_list())


def test_a_ready_defense_trains_with_the_loss_of_the_trainer() -> None:
    """Its own task's loss is not asked."""

    def never(output: Any, target: Any) -> Tensor:
        raise AssertionError

    ima = IMA(ClassificationTask(never), IMASettings(eps=0, delta=0))
    engine = toys.trainer(IMATrainer, toys.class_list(), defense=ima)
    engine.run()
    plain = toys.trainer(SupervisedTrainer, toys.class_list())
    plain.run()
    assert toys.same(engine.network.state_dict(), plain.network.state_dict())


def test_a_compiled_network_is_refused_where_it_must_run_eagerly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SATTrainer.method.defense, "eager_only", "its gradient has a gradient")
    with pytest.raises(InputError, match="compile.*its gradient has a gradient"):
        toys.trainer(SATTrainer, toys.class_list(), compile=True)


def one_hot(item: Item) -> Item:
    label = item["label"].bool()
    return {**item, "label": torch.cat([~label, label]).to(torch.uint8)}


def two_regions(item: Item) -> Item:
    label = item["label"].bool()
    return {**item, "label": torch.cat([label, label & (item["image"] > 1)]).float()}


@pytest.mark.parametrize(
    ("transform", "heads", "loss", "said"),
    [
        (lambda item: item, 2, toys.dice_loss(), "label values"),
        (lambda item: {**item, "label": item["label"][0].long()}, 2, nn.CrossEntropyLoss(), "label values"),
        (one_hot, 2, DiceLoss(softmax=True), "one-hot"),
        (two_regions, 2, DiceLoss(sigmoid=True), "regions"),
        (lambda item: item, 1, DiceLoss(sigmoid=True), "regions"),
    ],
)
def test_label_layouts(
    transform: Any, heads: int, loss: nn.Module, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the layout: off is identical, and the task sees the truth: a perfect network has the margin 1 - 0.6."""
    ends = []
    for cls, settings in ((SupervisedTrainer, {}), (IMATrainer, {"settings": toys.OFF})):
        torch.manual_seed(3)
        batches = toys.loader(toys.segment_list(), transform=transform)
        network = toys.segmenter(heads)
        with caplog.at_level(logging.INFO):
            engine = toys.trainer(cls, batches, network, loss=loss, **settings)
            engine.run()
        ends.append(toys.weights(network))
    assert toys.same(*ends)
    assert f"segmentation ({said}; decided is " in caplog.text
    task, layout = engine.defense.task, engine._layout
    label = torch.stack([transform(item)["label"] for item in toys.segment_list()])
    perfect = 20 * layout.to_task(label).float() - 10
    if not layout.regions:
        perfect = torch.cat([-perfect, perfect], 1)
    assert task.margin(perfect, layout.to_task(label)).tolist() == pytest.approx([0.4] * 8)
    assert torch.equal(layout.to_bundle(layout.to_task(label)), label)
    assert layout.to_bundle(layout.to_task(label)).dtype == label.dtype


def test_an_ignored_label_counts_nowhere() -> None:
    def ignore(item: Item) -> Item:
        label = item["label"].clone()
        label[0, 0] = 255
        return {**item, "label": label[0].long()}

    batches = toys.loader(toys.segment_list(), transform=ignore)
    loss = nn.CrossEntropyLoss(ignore_index=255)
    with pytest.raises(InputError, match="whole numbers from 0 to 1.*ignore_label"):
        toys.trainer(IMATrainer, batches, toys.segmenter(), loss=loss).run()
    engine = toys.trainer(IMATrainer, batches, toys.segmenter(), loss=loss, ignore_label=255)
    engine.run()
    assert engine.defense.task.ignore_label == 255


@pytest.mark.parametrize(
    ("label", "error"),
    [
        (torch.ones(1, 2, 2), "see the label's transforms"),
        (torch.ones(3, 4, 4), r"\(B, 2, \*spatial\)"),
        (torch.full((1, 4, 4), 0.5), "whole numbers from 0 to 1"),
        (torch.full((1, 4, 4), 7.0), r"received \[7\]"),
        (torch.ones(4), r"for logits \(B, K, \*spatial\)"),
    ],
)
def test_segmentation_labels_that_do_not_fit(label: Tensor, error: str) -> None:
    batches = toys.loader(toys.segment_list(), transform=lambda item: {**item, "label": label})
    with pytest.raises(InputError, match=error):
        toys.trainer(IMATrainer, batches, toys.segmenter(), loss=toys.dice_loss(), task="segmentation").run()


@pytest.mark.parametrize(
    ("label", "error"),
    [
        (5, "whole numbers from 0 to 1"),
        (torch.tensor([0.3, 0.7]), "soft labels"),
        (torch.ones(3), "class indices"),
    ],
)
def test_classification_labels_that_do_not_fit(label: Any, error: str) -> None:
    batches = toys.loader(toys.class_list(), transform=lambda item: {**item, "label": label})
    with pytest.raises(InputError, match=error):
        toys.trainer(IMATrainer, batches).run()


def test_a_task_that_the_shapes_contradict() -> None:
    with pytest.raises(InputError, match="task: received 'segmentation', allowed is classification"):
        toys.trainer(IMATrainer, toys.class_list(), task="segmentation").run()


def test_single_logit_heads() -> None:
    """Labels (B, 1) and a sigmoid loss, as bundles have them; far from the boundary every margin grows."""
    batches = toys.loader(toys.class_list(10.0), transform=lambda d: {**d, "label": torch.tensor([float(d["label"])])})
    engine = toys.trainer(
        IMATrainer, batches, toys.Classifier(1), loss=nn.BCEWithLogitsLoss(), lr=0.0, settings=toys.MARGINS
    )
    engine.run()
    assert margins(engine) == [0.25] * 8


def test_a_single_sample_with_batch_norm_keeps_torchs_own_message() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        toys.trainer(IMATrainer, toys.loader(toys.class_list(), 1), network).run()


def test_inputs_that_a_defence_cannot_attack() -> None:
    def extra(batch: Item, device: Any, non_blocking: bool, **kwargs: Any) -> Any:
        return batch["image"], batch["label"], (batch["label"],), {}

    with pytest.raises(InputError, match="prepare_batch"):
        toys.trainer(IMATrainer, toys.class_list(), prepare_batch=extra).run()
    with pytest.raises(InputError, match="label: received 'NoneType'"):
        toys.trainer(IMATrainer, toys.class_list(), prepare_batch=lambda batch, *_, **__: (batch["image"], None)).run()


def test_methods_that_weigh_samples_use_the_bundles_loss() -> None:
    engine = toys.trainer(IMATrainer, toys.class_list(), loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    output, target = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    each = engine.defense.task.sample_training_loss(output, target)
    assert each.shape == (4,)
    torch.testing.assert_close(each.mean(), engine.loss_function(output, target))


# -------------------------------------------------------------------- the robust metric


def test_robust_accuracy_of_a_linear_network() -> None:
    """f(x) = mean(x): a sample is at distance 4 |mean| from the boundary (16 voxels). Two of four stay right."""
    data = [{"image": torch.full((1, 4, 4), v), "label": int(v > 0)} for v in (0.1, -0.2, 0.3, -0.4)]
    data.append({"image": torch.ones(1, 4, 4), "label": 0})  # wrong without an attack
    for eps, expected in ((0.3, 0.8), (1.0, 0.4), (1.5, 0.2), (1.7, 0.0)):
        engine = toys.evaluator(toys.Classifier(), toys.loader(data, 2), RobustMetric(eps=eps, unit="norm"))
        engine.run()
        assert engine.state.metrics["robust"] == pytest.approx(expected)
    engine = toys.evaluator(toys.Classifier(), toys.loader(data, 2), RobustMetric(eps=0.25))  # RMS: |mean| itself
    engine.run()
    assert engine.state.metrics["robust"] == pytest.approx(0.4)
    first = RobustMetric(eps=1.0, unit="norm", batches=1)
    engine = toys.evaluator(toys.Classifier(), toys.loader(data, 2), first)
    engine.run()
    assert engine.state.metrics["robust"] == 0.0
    fgsm = RobustMetric(attack=FGSM(Threat("linf", 0.25)))
    engine = toys.evaluator(toys.Classifier(), toys.loader(data, 2), fgsm)
    engine.run()
    assert engine.state.metrics["robust"] == pytest.approx(0.4)


class Brighter(Inferer):
    """What is deployed sees images that are 0.15 brighter."""

    def __call__(self, inputs: Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        return network(inputs + 0.15)


def test_attacked_is_what_the_evaluator_deploys() -> None:
    """Means 0.25, -0.05, 0.45 and -0.25 for the network: one of them is farther than 0.28 from 0."""
    data = [{"image": torch.full((1, 4, 4), v), "label": int(v > 0)} for v in (0.1, -0.2, 0.3, -0.4)]
    for inferer, expected in ((SimpleInferer(), 0.5), (Brighter(), 0.25)):
        engine = toys.evaluator(toys.Classifier(), data, RobustMetric(eps=0.28), inferer=inferer)
        engine.run()
        assert engine.state.metrics["robust"] == expected


def threshold_network() -> nn.Module:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([-1.0, 1.0]).view(2, 1, 1, 1))
        network[0].bias.zero_()
    return network


@pytest.mark.parametrize(
    "metric",
    [RobustMetric(eps=0.1, norm="linf"), RobustMetric(attack=PGD(Threat("linf", 0.1), steps=5))],
    ids=["eps", "PGD"],
)
@pytest.mark.parametrize("inferer", [None, SlidingWindowInferer((2, 2), overlap=0)])
def test_robust_dice_of_a_threshold(inferer: Any, metric: RobustMetric) -> None:
    """Foreground where x > 0, two of three foreground voxels and two of the background within 0.1: Dice 2 / (3 + 3).

    After the first step it is 4 / 7, below the threshold of right and wrong: the attack must go on.
    """
    image = torch.full((1, 4, 4), -1.0)
    image[0, 0, :3] = torch.tensor([1.0, 0.09, 0.02])
    image[0, 3, 2:] = -0.02
    label = (image > 0).float()
    network = threshold_network().train()
    engine = toys.evaluator(
        network, toys.loader([{"image": image, "label": label}] * 3, 2), metric,
        **({} if inferer is None else {"inferer": inferer}),
    )  # fmt: skip
    before = toys.weights(network)
    engine.run()
    assert engine.state.metrics["robust"] == pytest.approx(1 / 3)
    assert toys.same(before, network.state_dict())
    assert all(m.training for m in network.modules())
    assert all(p.grad is None and p.requires_grad for p in network.parameters())


def test_the_robust_metric_chooses_the_checkpoint(tmp_path: Path) -> None:
    """Epoch 2 is the most robust; all are right without an attack."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.tensor([1.0, -1.0, 1.0, -1.0])
    data = [{"image": torch.full((1, 4, 4), 0.5 * float(s)), "label": int(s > 0)} for s in sides]
    network = toys.Classifier()
    versions = [torch.randn(16, generator=generator) * s for s in (0.15, 0.0, 0.1)]
    metric = RobustMetric(eps=1.9, unit="norm")
    saver = CheckpointSaver(str(tmp_path), {"network": network}, save_key_metric=True, key_metric_filename="model.pt")
    validation = toys.evaluator(network, data, metric, val_handlers=[saver])
    scores = []

    def next_version() -> None:
        with torch.no_grad():
            direction = torch.full((16,), 1 / 16) + versions[engine.state.epoch - 1]
            network.head.weight.copy_(torch.stack([-direction, direction]))

    engine = toys.trainer(
        SATTrainer, toys.class_list(), network, lr=0.0, epochs=3, train_handlers=[ValidationHandler(1, validation)]
    )
    engine.add_event_handler(Events.EPOCH_STARTED, next_version)
    validation.add_event_handler(Events.COMPLETED, lambda e: scores.append(e.state.metrics["robust"]))
    engine.run()
    assert scores[1] == 1.0
    assert max(scores[0], scores[2]) < 1.0
    assert validation.state.best_metric == 1.0
    best = torch.load(tmp_path / "model.pt", weights_only=True)
    assert torch.equal(best["head.weight"][1], torch.full((16,), 1 / 16))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({}, "eps and attack"),
        ({"eps": 0.1, "attack": FGSM(Threat("linf", 0.1))}, "eps and attack"),
        ({"eps": -1.0}, "eps: received -1.0"),
        ({"eps": 0.1, "steps": 0}, "steps: received 0"),
        ({"eps": 0.1, "task": "detection"}, "task: received"),
        ({"eps": 0.1, "batches": 0}, "batches: received 0"),
        ({"eps": 0.1, "box": (1.0, 0.0)}, "box: received (1.0, 0.0)"),
    ],
)
def test_bad_robust_metrics(given: dict[str, Any], error: str) -> None:
    with pytest.raises(InputError) as raised:
        RobustMetric(**given)
    assert error in str(raised.value)


# -------------------------------------------------------------------- a bundle

BUNDLE: dict[str, Any] = {
    "imports": ["$import monai", "$import tests.monai_engine_toys as toys"],
    "bundle_root": ".",
    "train_data": "$toys.class_list(0.5, index=False)",
    "network_def": "$toys.noisy_classifier()",
    "network": "$@network_def.to('cpu')",
    "loss": {"_target_": "torch.nn.CrossEntropyLoss"},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network.parameters()", "lr": 0.01},
    "train": {
        "dataset": {"_target_": "Dataset", "data": "@train_data", "transform": "$toys.keep_meta()"},
        "dataloader": {
            "_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 4, "shuffle": True, "num_workers": 0,
        },
        "handlers": [
            {
                "_target_": "CheckpointSaver", "save_dir": "$@bundle_root + '/models'",
                "save_dict": {"model": "@network"}, "save_final": True, "final_filename": "model.pt",
            },
            {"_target_": "ValidationHandler", "validator": "@validate#evaluator", "interval": 1},
        ],
        "trainer": {
            "_target_": "SupervisedTrainer", "max_epochs": 2, "device": "cpu",
            "train_data_loader": "@train#dataloader", "network": "@network", "loss_function": "@loss",
            "optimizer": "@optimizer", "train_handlers": "@train#handlers",
        },
    },
    "validate": {
        "dataset": {"_target_": "Dataset", "data": "$toys.class_list(0.5)"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@validate#dataset", "batch_size": 4},
        "handlers": [
            {
                "_target_": "CheckpointSaver", "save_dir": "$@bundle_root + '/models'",
                "save_dict": {"model": "@network"}, "key_metric_filename": "best.pt",
                "save_key_metric": "$@validate#evaluator#key_val_metric is not None",
            },
        ],
        "evaluator": {
            "_target_": "SupervisedEvaluator", "device": "cpu", "val_data_loader": "@validate#dataloader",
            "network": "@network", "key_val_metric": None, "val_handlers": "@validate#handlers",
        },
    },
    "initialize": ["$monai.utils.set_determinism(seed=123)"],
    "run": ["$@train#trainer.run()"],
}  # fmt: skip


def run_bundle(root: Path, *more: str, **overrides: Any) -> None:
    """``python -m monai.bundle run`` with the bundle's config and further ones."""
    (root / "configs").mkdir(parents=True, exist_ok=True)
    files = [root / "configs" / f"{i}.json" for i in range(1 + len(more))]
    for file, text in zip(files, (json.dumps({**BUNDLE, "bundle_root": str(root)}), *more), strict=True):
        file.write_text(text)
    monai.bundle.run(config_file=[str(f) for f in files], **overrides)
    monai.utils.set_determinism(seed=None)


def load(file: Path) -> dict[str, Any]:
    return torch.load(file, weights_only=True)


def test_an_unmodified_bundle_becomes_robust_by_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_key = {
        "train#trainer#_target_": "monai_adv.engines.IMATrainer",
        # Images from files would have names.
        "train#dataset#data": {"_target_": "monai_adv.engines.indexed", "items": "@train_data"},
    }
    models = {}
    for name, variables, overrides in (
        ("clean", {}, {}),
        ("off", {"MONAI_ADV_EPS": "0", "MONAI_ADV_DELTA": "0"}, one_key),
        ("robust", {"MONAI_ADV_EPS": "0.2"}, {**one_key, "train#trainer#state": str(tmp_path / "state.pt")}),
    ):
        with monkeypatch.context() as patch:
            for key, value in variables.items():
                patch.setenv(key, value)
            run_bundle(tmp_path / name, **overrides)
        models[name] = load(tmp_path / name / "models" / "model.pt")
    assert toys.same(models["clean"], models["off"])
    assert not toys.same(models["clean"], models["robust"])
    saved = load(tmp_path / "state.pt")
    assert saved["epoch"] == 2
    assert saved["state"]["settings"]["eps"] == 0.2
    assert not torch.equal(saved["state"]["defense"]["margins"]["values"], torch.full((8,), 0.04))


# -------------------------------------------------------------------- the docs


def blocks(language: str) -> list[str]:
    page = ROOT / "docs" / "monai.md"
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_the_configs_of_the_docs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two epochs, then two more: the second run gets the margins that the first one saved."""
    loaded: list[dict[str, Any]] = []
    original = RobustState.load_state_dict
    monkeypatch.setattr(
        RobustState, "load_state_dict", lambda self, saved: (loaded.append(copy.deepcopy(saved)), original(self, saved))
    )
    robust, resume, metric = blocks("json")
    indexed_data = json.dumps({"train_data": "$toys.class_list(0.5)"})
    with caplog.at_level(logging.INFO):
        run_bundle(tmp_path, indexed_data, robust, metric)
    saved = load(tmp_path / "models" / "checkpoint_epoch=2.pt")
    assert set(saved) == {"model", "optimizer", "defense"}
    assert "Got new best metric of robust" in caplog.text
    assert (tmp_path / "models" / "best.pt").exists()
    assert not loaded
    run_bundle(tmp_path, indexed_data, robust, resume)
    assert torch.equal(loaded[0]["defense"]["margins"]["values"], saved["defense"]["defense"]["margins"]["values"])
    assert not toys.same(saved["model"], load(tmp_path / "models" / "checkpoint_epoch=2.pt")["model"])


def test_the_code_of_the_docs() -> None:
    network = toys.Classifier()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    names: dict[str, Any] = {"torch": torch, "network": network, "optimizer": optimizer}
    names["loader"] = toys.loader(toys.class_list(30.0))
    for block in blocks("python"):
        exec(block, names)
    assert names["trainer"].state.epoch == 1
    # One visit of every sample, from the first margin eps / 5 on.
    assert names["trainer"].defense.margins.values.tolist() == pytest.approx([0.04] * toys.COUNT)


def test_the_docs_know_every_argument() -> None:
    """In the reference; those of the guide are some of them."""
    page = (ROOT / "docs" / "monai.md").read_text()
    own = [n for n, p in inspect.signature(RobustTrainer).parameters.items() if p.kind is p.KEYWORD_ONLY]
    described = re.findall(r"^    (\w+): ", inspect.getdoc(RobustTrainer) or "", re.MULTILINE)
    assert own
    assert set(own) <= set(described)
    table = page.partition("### Arguments of the trainer")[2].partition("## ")[0]
    shown = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", table, re.MULTILINE)))
    assert {"task", "channels"} <= set(shown) <= set(own)


# ---------------------------------------------------------------- tasks


def test_trainers_that_share_a_task_train_with_their_own_loss_and_leave_it_as_it_is() -> None:
    def always(value: float) -> Any:
        return lambda output, label: 0 * output.sum() + value

    problems: list[Any] = [
        (ClassificationTask(), toys.class_list(), toys.Classifier),
        (SegmentationTask(always(5.0)), toys.segment_list(), toys.segmenter),
    ]
    for task, data, network in problems:
        before = dict(vars(task))
        trainers = [toys.trainer(SATTrainer, data, network(), loss=always(v), task=task) for v in (1.0, 2.0)]
        for engine, loss in zip(trainers, (1.0, 2.0), strict=True):
            engine.run()
            assert engine.state.output[0]["loss"] == loss
        assert vars(task) == before
        assert task == replace(task)


# ---------------------------------------------------------------- radii in the units of the files


def scaled(width: float = 210.0) -> Any:
    """A loader whose images are divided by ``width`` HU."""
    return toys.loader(toys.class_list(), transform=ScaleIntensityRanged("image", 0, width))


@pytest.mark.parametrize(("norm", "unit"), [("linf", "norm"), ("l2", "rms")])
def test_21_hu_are_a_tenth_where_the_bundle_divides_by_210(norm: str, unit: str) -> None:
    """Closed form: 21 / 210 = 0.1."""
    settings = {"norm": norm, "eps": 21, "unit": "raw"}
    trainer = toys.trainer(SATTrainer, scaled(), toys.Classifier(), settings=settings)
    assert trainer.defense.threat == Threat(norm, 0.1, unit=unit)
    metric = RobustMetric(**settings)
    toys.evaluator(toys.Classifier(), scaled(), metric).run()
    assert metric._threat == Threat(norm, 0.1, unit=unit)


def test_raw_radii_need_one_scaling_of_all_images() -> None:
    settings = {"eps": 21, "unit": "raw"}
    said = "unit: received 'raw', allowed is 'rms' or 'norm' here; raw radii can be converted only where ScaleIntens"
    with pytest.raises(InputError) as error:
        toys.trainer(SATTrainer, toys.class_list(), toys.Classifier(), settings=settings)
    assert str(error.value).startswith(said)
    with pytest.raises(InputError) as error:
        toys.evaluator(toys.Classifier(), toys.class_list(), RobustMetric(**settings)).run()
    assert str(error.value).startswith(said)
    with pytest.raises(InputError, match="allowed is 'rms' or 'norm' in a loop of your own"):
        SATSettings(**settings).threat()
