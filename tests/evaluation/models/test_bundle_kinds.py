"""What a bundle's network, labels, loss and post-processing say, as in the Model Zoo; tiny, with known answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.data import Dataset, MetaTensor, PersistentDataset, SmartCacheDataset
from monai.engines import SupervisedTrainer
from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss, FocalLoss, GeneralizedDiceFocalLoss
from monai.transforms import Activationsd, AsDiscrete, AsDiscreted, Compose, EnsureTyped
from torch import Tensor, nn

from monai_adv import engines
from monai_adv.engines import IMATrainer, RobustMetric, SATTrainer
from monai_adv.engines.bundle_rule import leaves_background_out, postprocessing_of, rule_of_loss, rule_of_postprocessing
from monai_adv.engines.bundle_task import kind_of_batch, layout_of
from monai_adv.engines.numbering import POSITION, Numbered, items_of, numbered
from monai_adv.engines.supported import mask_channels
from monai_adv.errors import InputError
from monai_adv.tasks import ClassificationTask, SegmentationTask
from tests import monai_engine_toys as toys

Item = dict[str, Any]


def margins(engine: Any) -> list[float]:
    values: list[float] = engine.defense.margins.values.tolist()
    return values


# -------------------------------------------------------------------- fully convolutional classifiers


class Patches(nn.Module):
    """As pathology_tumor_detection: a logit per patch that keeps its spatial axes of size 1."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = toys.Classifier(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[..., None, None]


def patch_labels(item: Item) -> Item:
    return {**item, "label": torch.full((1, 1, 1), float(item["label"]))}


@pytest.mark.parametrize("task", ["auto", "classification"])
def test_a_classifier_that_keeps_spatial_axes_of_size_one(task: Any) -> None:
    """Both classes are attacked, the normal one as well: all eight samples are right by a distance of 10."""
    batches = toys.loader(toys.class_list(10.0), transform=patch_labels)
    given = {"loss": nn.BCEWithLogitsLoss(), "lr": 0.0, "task": task}
    sat = toys.trainer(SATTrainer, batches, Patches(), settings={"eps": 0.1}, **given)
    sat.run()
    assert sat.kind == "classification"
    assert sat.state.metrics["defense/attacked"] == 1.0
    ima = toys.trainer(IMATrainer, batches, Patches(), settings=toys.MARGINS, **given)
    ima.run()
    assert margins(ima) == [0.25] * toys.COUNT


def test_it_is_a_classification_task() -> None:
    """The logits z = 3, -1 of a single head are the margins of the labels 1, 1."""
    output, label = torch.tensor([3.0, -1.0]).view(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    assert ClassificationTask().margin(output, label).tolist() == [3.0, -1.0]
    rows = torch.tensor([[0.0, 2.0, 1.0]]).view(1, 3, 1, 1, 1)
    assert ClassificationTask().margin(rows, torch.tensor([1])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("output", "label", "kind"),
    [
        ((9, 1, 1, 1), (9, 1, 1, 1), "classification"),
        ((9, 4, 1, 1), (9,), "classification"),
        ((9, 4), (9, 1), "classification"),
        ((9, 4, 8, 8), (9, 1, 8, 8), "segmentation"),
        ((9, 4, 8), (9, 8), "segmentation"),
    ],
)
def test_kinds(output: tuple[int, ...], label: tuple[int, ...], kind: str) -> None:
    assert kind_of_batch(torch.zeros(output), torch.zeros(label)) == kind


def test_a_label_file_may_become_a_class(tmp_path: Path) -> None:
    """As pathology_nuclei_classification: the data list looks like a segmentation, the batch is right."""
    data = toys.class_list(30.0)
    for i, item in enumerate(data):
        np.save(tmp_path / f"{i}.npy", np.full((4, 4), item["label"]))
        item["label"] = str(tmp_path / f"{i}.npy")
    read = lambda item: {**item, "label": int(np.load(item["label"]).max())}  # noqa: E731
    engine = toys.trainer(IMATrainer, toys.loader(data, transform=read), lr=0.0, settings=toys.MARGINS, epochs=2)
    assert engine.kind == "segmentation"
    engine.run()
    assert engine.kind == "classification"
    assert margins(engine) == [0.375] * toys.COUNT
    assert "threshold" not in engine.robust_state.state_dict()["settings"]
    resumed = toys.trainer(IMATrainer, toys.loader(data, transform=read), lr=0.0, settings=toys.MARGINS)
    resumed.robust_state.load_state_dict(engine.robust_state.state_dict())
    resumed.run()
    assert margins(resumed) == [0.5] * toys.COUNT  # what a checkpoint brought is not lost with the guess
    with pytest.raises(InputError, match="ARFL for segmentation"):  # whose term has no meaning there
        toys.trainer(engines.ARFLTrainer, toys.segment_list(), toys.segmenter()).run()
    with pytest.raises(InputError, match="allowed is classification"):  # said, not guessed
        toys.trainer(IMATrainer, toys.loader(data, transform=read), task="segmentation").run()
    with pytest.raises(InputError, match="give the argument task 'classification'"):  # the network is changed already
        toys.trainer(engines.LBGATTrainer, toys.loader(data, transform=read)).run()


# -------------------------------------------------------------------- softmax or sigmoid


@pytest.mark.parametrize(
    ("loss", "rule"),
    [
        (DiceLoss(sigmoid=True, to_onehot_y=True), "sigmoid"),
        (DiceLoss(softmax=True), "softmax"),
        (DiceLoss(), None),
        (DiceCELoss(sigmoid=True), "sigmoid"),  # it has a CrossEntropyLoss as well
        (DiceCELoss(softmax=True, to_onehot_y=True), "softmax"),
        (DiceFocalLoss(softmax=True), "softmax"),
        (DiceFocalLoss(sigmoid=True), "sigmoid"),
        (GeneralizedDiceFocalLoss(softmax=True), "softmax"),
        (FocalLoss(), "sigmoid"),
        (FocalLoss(use_softmax=True), "softmax"),
        (nn.CrossEntropyLoss(), "softmax"),
        (nn.BCEWithLogitsLoss(), "sigmoid"),
        (nn.ModuleList([nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss()]), None),
        (nn.L1Loss(), None),
        (lambda output, target: output.mean(), None),
    ],
)
def test_what_losses_say(loss: Any, rule: str | None) -> None:
    assert rule_of_loss(loss) == rule


def test_losses_that_leave_the_background_out() -> None:
    assert leaves_background_out(DiceCELoss(include_background=False, softmax=True))
    assert not leaves_background_out(DiceLoss())
    assert not leaves_background_out(nn.CrossEntropyLoss())


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)], "sigmoid"),
        ([Activationsd("pred", softmax=True), AsDiscreted(["pred", "label"], argmax=[True, False])], "softmax"),
        # As renalStructures_CECT_segmentation: the label comes first or second, and has no threshold.
        ([Activationsd("pred", sigmoid=True), AsDiscreted(["label", "pred"], threshold=[None, 0.5])], "sigmoid"),
        ([AsDiscreted("pred", threshold=0.0)], "sigmoid"),
        ([AsDiscreted("label", argmax=True)], None),
        ([Activationsd("pred", softmax=True)], "softmax"),
        ([AsDiscrete(argmax=True)], "softmax"),
        ([], None),
    ],
)
def test_what_post_processing_says(parts: list[Any], rule: str | None) -> None:
    assert rule_of_postprocessing(Compose([Compose(parts)])) == rule


@pytest.mark.parametrize(("activation", "cut"), [("sigmoid", 0.3), ("softmax", 0.5), (None, 0.5)])
def test_other_thresholds_are_refused(activation: str | None, cut: float) -> None:
    first = [Activationsd("pred", **{activation: True})] if activation else []
    with pytest.raises(InputError, match="postprocessing: received 'a threshold of"):
        rule_of_postprocessing(Compose([*first, AsDiscreted("pred", threshold=cut)]))


LOGITS = torch.tensor([[[9.0, 9.0, -9.0, -9.0]], [[1.0, 1.0, 1.0, -1.0]], [[-2.0, 2.0, -2.0, -2.0]]])[None]
"""``(1, 3, 1, 4)``: by argmax class 0, 0, 1, 1; by sigmoids class 1 in voxels 0 to 2, class 2 in voxel 1."""
LABEL = torch.tensor([[[[1.0, 2.0, 1.0, 0.0]]]])


def test_sigmoid_classes_are_judged_each_for_itself() -> None:
    """Dice of class 1: 2 * 2 / (3 + 2), of class 2: 1; by argmax 2 * 1 / (2 + 2) and 0."""
    layout = layout_of(LOGITS, LABEL, None, rule="sigmoid")
    assert layout.sigmoid
    task = SegmentationTask.for_evaluation(sigmoid=True)
    assert task.dice(LOGITS, LABEL).tolist() == [pytest.approx([0.8, 1.0])]
    assert SegmentationTask.for_evaluation().dice(LOGITS, LABEL).tolist() == [[0.5, 0.0]]
    points = task.points(LOGITS, LABEL)
    assert points.logits[0, 1].tolist() == [1.0, 1.0, 1.0, -1.0, -2.0, 2.0, -2.0, -2.0]
    assert points.labels[0].tolist() == [1, 0, 1, 0, 0, 1, 0, 0]
    # The soft Dice does not know channel 0.
    moved = LOGITS.clone()
    moved[:, 0] += 5
    assert torch.equal(task.sample_loss(moved, LABEL), task.sample_loss(LOGITS, LABEL))
    assert task.margin(-LOGITS.abs(), torch.zeros_like(LABEL)).tolist() == pytest.approx(
        [0.4]
    )  # nothing found, 1 - 0.6


def test_layouts_follow_the_rule() -> None:
    hot = torch.cat([k == LABEL for k in range(3)], 1).float()
    by_argmax = layout_of(LOGITS, hot, None, rule="softmax")
    assert (by_argmax.classes, by_argmax.regions, by_argmax.sigmoid) == (3, False, False)
    background_out = layout_of(LOGITS, hot, None, rule="sigmoid", background=False)
    assert (background_out.classes, background_out.regions, background_out.sigmoid) == (3, False, True)
    assert layout_of(LOGITS, hot, None, rule="sigmoid").regions
    assert layout_of(LOGITS, hot, None).classes == 3  # nobody says it
    with pytest.raises(InputError, match="overlap or leave voxels out.*regions true"):
        layout_of(LOGITS, torch.ones_like(hot), None, rule="softmax")


class Channels(nn.Module):
    """Logits by hand, moved by the image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return LOGITS.expand(len(x), -1, -1, -1) * self.scale + 0.01 * x


def renal_like(count: int = 4) -> list[Item]:
    return [{"image": torch.zeros(1, 1, 4), "label": LABEL[0]} for _ in range(count)]


SIGMOID = Compose([Activationsd("pred", sigmoid=True), AsDiscreted("pred", threshold=0.5)])


@pytest.mark.parametrize("told_by", ["loss", "postprocessing", "argument"])
def test_the_trainer_judges_as_the_bundle_does(told_by: str, caplog: pytest.LogCaptureFixture) -> None:
    """The Dice of 0.9 is above 0.6; by argmax it would be 0.25, and nothing would be attacked."""
    loss = DiceLoss(sigmoid=told_by == "loss", to_onehot_y=True, include_background=False)
    more = {"postprocessing": {"postprocessing": SIGMOID}, "argument": {"activation": "sigmoid"}}.get(told_by, {})
    engine = toys.trainer(
        IMATrainer, toys.loader(renal_like()), Channels(), loss=loss, lr=0.0, task="segmentation", **more
    )
    with caplog.at_level(logging.INFO):
        engine.run()
    assert engine.state.metrics["defense/attacked"] == 1.0
    assert "segmentation (label values; decided is each channel by its sigmoid above 0.5, the background" in caplog.text
    assert "attacked channels: all 1" in caplog.text
    argmax = toys.trainer(
        IMATrainer, toys.loader(renal_like()), Channels(), loss=loss, lr=0.0, activation="softmax", task="segmentation"
    )
    with caplog.at_level(logging.WARNING):
        argmax.run()
    assert argmax.state.metrics["defense/attacked"] == 0.0
    assert "IMATrainer: no sample was attacked in this epoch" in caplog.text
    assert "`threshold` (0.6)" in caplog.text


def test_the_metric_judges_as_the_evaluator_does() -> None:
    """Radius 0 is the clean Dice: 0.9 by sigmoids, 0.25 by argmax."""
    for given, postprocessing, expected in (
        ({}, SIGMOID, 0.9),
        ({}, None, 0.25),
        ({"activation": "sigmoid"}, None, 0.9),
    ):
        batches = toys.loader(renal_like(), transform=EnsureTyped("image", track_meta=False))
        engine = toys.evaluator(Channels(), batches, RobustMetric(eps=0.0, **given), postprocessing=postprocessing)
        assert postprocessing_of(engine) is postprocessing
        engine.run()
        assert engine.state.metrics["robust"] == pytest.approx(expected)


def test_a_rule_that_does_not_exist() -> None:
    for make in (
        lambda: toys.trainer(IMATrainer, toys.class_list(), activation="argmax"),
        lambda: RobustMetric(0.1, activation="x"),
    ):
        with pytest.raises(InputError, match="activation.*one of softmax, sigmoid"):
            make()


# -------------------------------------------------------------------- masks as channels


def test_masks_among_the_channels() -> None:
    images = torch.rand(2, 3, 4, 4)
    images[:, 1] = (images[:, 1] > 0.5).float()
    assert mask_channels(images, None) == [1]
    assert mask_channels(images, (0, 2)) == []
    assert mask_channels((images > 0.5).float(), None) == []  # a binary image is an image
    assert mask_channels(images[:, 1:2], None) == []


def test_guidance_channels_are_told(caplog: pytest.LogCaptureFixture) -> None:
    def guided(item: Item) -> Item:
        return {**item, "image": torch.cat([item["image"], (item["image"] > 0).float()])}

    network = nn.Sequential(nn.Flatten(), nn.Linear(32, 2))
    for channels, said in ((None, True), ([0], False)):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            toys.trainer(IMATrainer, toys.loader(toys.class_list(), transform=guided), network, channels=channels).run()
        assert ("Channels [1] of the first batch hold only 0 and 1" in caplog.text) == said
        assert f"attacked channels: {'all 2' if said else '[0] of 2'}" in caplog.text


# -------------------------------------------------------------------- items that number themselves


class Forgetful(Dataset):
    """As PatchWSIDataset: builds its items anew, and drops what it does not know; its crops are a list."""

    def __getitem__(self, index: Any) -> Any:
        item = self.data[index]
        return [{"image": item["image"], "label": item["label"]}] * 2


@pytest.mark.parametrize("kind", ["plain", "forgetful", "persistent", "workers"])
def test_the_trainer_numbers_the_items_itself(kind: str, tmp_path: Path) -> None:
    """No index, no file names; shuffled; a margin grows by 0.125 at every visit of its own sample."""
    data = toys.class_list(30.0, index=False)
    dataset = Forgetful(data) if kind == "forgetful" else Dataset(data)
    if kind == "persistent":
        dataset = PersistentDataset(data, toys.keep_meta(), cache_dir=tmp_path)
    batches = toys.loader(dataset, 3, shuffle=True)
    if kind == "workers":
        batches = toys.DataLoader(dataset, batch_size=3, shuffle=True, num_workers=1)
    engine = toys.trainer(IMATrainer, batches, lr=0.0, settings=toys.MARGINS, epochs=2)
    assert engine._ids.source == "positions in the data set, 8 samples"
    engine.defense.margins.values[3] = 0.5
    engine.run()
    assert margins(engine) == [0.75 if i == 3 else 0.375 for i in range(toys.COUNT)]
    assert not isinstance(batches.dataset, Numbered)  # the caller's loader is as it was


def test_files_name_positions_and_repeated_files_are_samples_of_their_own(tmp_path: Path) -> None:
    """Patches of two slides: the file alone would mix four samples."""
    data = [{"image": str(tmp_path / f"slide{i // 4}.tif"), "label": int(i >= 4), "location": i} for i in range(8)]
    images = [item["image"] for item in toys.class_list(30.0)]
    read = lambda item: {"image": images[item["location"]], "label": item["label"]}  # noqa: E731
    engine = toys.trainer(IMATrainer, toys.loader(data, 3, shuffle=True, transform=read), lr=0.0, settings=toys.MARGINS)
    assert engine.defense.margins.ids.groups == {"slide0.tif": 4, "slide1.tif": 4}
    engine.defense.margins.values[5] = 0.5
    engine.run()
    assert margins(engine) == [0.625 if i == 5 else 0.25 for i in range(8)]


def test_a_data_set_that_moves_its_items_is_followed_by_file_names() -> None:
    """Asked for position i it hands out the item i + 1: margins stay with their files."""
    images = [item["image"] for item in toys.class_list(30.0)]
    data = [{"image": f"{i}.npy", "label": int(i >= 4)} for i in range(8)]

    def moved(item: Item) -> Item:
        i = (int(item["image"][0]) + 1) % 8
        return {"image": MetaTensor(images[i], meta={"filename_or_obj": f"{i}.npy"}), "label": int(i >= 4)}

    engine = toys.trainer(IMATrainer, toys.loader(data, 2, transform=moved), lr=0.0, settings=toys.MARGINS)
    engine.defense.margins.values[1] = 0.5
    engine.run()
    assert margins(engine) == [0.625 if i == 1 else 0.25 for i in range(8)]


def test_what_cannot_be_numbered() -> None:
    class Stream(torch.utils.data.IterableDataset[Item]):
        def __iter__(self) -> Any:
            return iter(toys.class_list())

    smart = SmartCacheDataset(toys.class_list(), replace_rate=0.5, cache_num=4, progress=False)
    for dataset in (Stream(), smart):
        assert numbered(torch.utils.data.DataLoader(dataset)) is None
    assert numbered([1, 2]) is None
    loader = numbered(torch.utils.data.DataLoader(toys.class_list()))
    assert numbered(loader) is loader
    assert [batch[POSITION].tolist() for batch in loader] == [[i] for i in range(8)]


def test_items_behind_positions() -> None:
    data = toys.class_list()
    part = torch.utils.data.Subset(Numbered(Dataset(data)), [5, 2])
    items = items_of(part)
    assert items is not None
    assert [item["index"] for item in items] == [5, 2]
    assert items_of(object()) is None


# -------------------------------------------------------------------- kinds that are not supported


def arguments(**given: Any) -> Item:
    return {"device": "cpu", "max_epochs": 1, "train_data_loader": [], **given}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (arguments(detector=None, optimizer=None), "detector: arguments of object detection"),
        (arguments(g_network=None, d_network=None, latent_shape=8), "arguments of a GAN"),
        (arguments(network=None, optimizer=None, loss_function=None, autoencoder_model=None), "a diffusion model"),
        (arguments(network=None, optimizer=None, loss_function=None, hyper_kwargs={}), "interactive or prompted"),
        (arguments(network=None, optimizer=None, loss_function=None, max_epoch=3), "did you mean 'max_epochs'"),
        (arguments(network=None), "nothing for optimizer, loss_function"),
    ],
)
def test_trainers_of_another_kind(given: Mapping[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        IMATrainer(**given)


class Gives(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.weight, self.output = nn.Parameter(torch.ones(1)), output

    def forward(self, x: Tensor) -> Any:
        return self.output


def many(batch: Any, *_: Any, **__: Any) -> Any:
    return batch["image"], {"np": batch["label"], "hv": batch["label"]}


def nothing(batch: Any, *_: Any, **__: Any) -> Any:
    return batch["image"], None


@pytest.mark.parametrize(
    ("network", "label", "more", "sentence"),
    [
        (Gives(torch.zeros(4, 2, 10)), torch.rand(2, 10), {}, "landmarks, registration"),
        (Gives(torch.rand(4, 1, 4, 4)), torch.rand(1, 4, 4), {}, "landmarks, registration"),
        (Gives({"np": torch.zeros(4, 2, 4, 4)}), 1, {}, r"type dict with \['np'\].*HoVerNet"),
        (Gives(torch.zeros(4, 2)), 1, {"prepare_batch": many}, "label: received .dict with .*HoVerNet"),
        (Gives(torch.zeros(4, 2)), 1, {"prepare_batch": nothing}, "label: received 'NoneType'.*registration"),
    ],
)
def test_truths_and_outputs_of_another_kind(network: nn.Module, label: Any, more: Item, sentence: str) -> None:
    batches = toys.loader(toys.class_list(), transform=lambda item: {**item, "label": label})
    with pytest.raises(InputError, match=f"(?s){sentence}"):
        toys.trainer(IMATrainer, batches, network, **more).run()


def test_supported_trainers_take_all_arguments_of_supervised_trainer() -> None:
    for kind in (SupervisedTrainer, IMATrainer):
        engine = toys.trainer(kind, toys.class_list(), amp_kwargs={"cache_enabled": False}, optim_set_to_none=True)
        assert engine.amp_kwargs == {"cache_enabled": False}
        assert engine.optim_set_to_none is True
