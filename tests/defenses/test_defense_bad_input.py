"""Input that users get wrong, or lay out in another way, for every defence in a loop of one's own."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn

from monai_adv import InputError, cli, engines
from monai_adv.defenses import METHODS, Batch, Defense
from monai_adv.defenses.ima import IMA, IMASettings
from monai_adv.engines.bundle_task import layout_of
from monai_adv.sample_state import SampleIds
from monai_adv.tasks import ClassificationTask, SegmentationSettings, SegmentationTask
from tests import defense_toys as toys
from tests import monai_engine_toys as engine_toys

SIZE, SAMPLES = 6, 12
IMAGES = torch.randn(SIZE, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
BINARY = LABELS % 2
IDS = torch.arange(SIZE)
MAPS = (torch.roll(IMAGES, 1, 0) > 0).long()
"""Label maps (B, 1, 8, 8) of two classes."""

every_method = pytest.mark.parametrize("key", METHODS)
with_memory = pytest.mark.parametrize("key", [key for key, m in METHODS.items() if m.defense.needs_ids])
for_segmentation = pytest.mark.parametrize("key", [key for key, m in METHODS.items() if not m.not_for])


class OneLogit(nn.Module):
    """A classifier with one logit z: ``(B, 1)``, ``(B,)``, or as the two logits -z/2 and z/2."""

    def __init__(self, layout: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = toys.Classifier(1)
        self.layout = layout

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.body(x)
        if self.layout == "two":
            return torch.cat([-z / 2, z / 2], 1)
        return z if self.layout == "(B, 1)" else z[:, 0]


def classifier(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return toys.Classifier(classes)


def segmenter(heads: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, heads, 1))


def settings_of(key: str, **more: Any) -> Any:
    """Short attacks; those of ``more`` that the method has."""
    of = METHODS[key].settings
    known = {f.name for f in dataclasses.fields(of)}
    return of(**{k: v for k, v in {**toys.SHORT, **toys.OWN.get(key, {}), **more}.items() if k in known})


def ready(key: str, network: nn.Module, task: Any = None, **settings: Any) -> tuple[Defense, torch.optim.Optimizer]:
    """A defence in the middle of its training, with nothing forgotten."""
    defense = METHODS[key].defense(ClassificationTask() if task is None else task, settings_of(key, **settings))
    optimizer = toys.optimizer_of(network)
    defense.bind(SampleIds({"train": SAMPLES}), "cpu")
    defense.attach(network, optimizer)
    defense.on_epoch_start(3, 4)
    return defense, optimizer


def trained(key: str, network: nn.Module, batch: Batch, task: Any = None, steps: int = 1) -> list[Any]:
    """The losses of some steps, the weights after them, the memory of samples."""
    defense, optimizer = ready(key, network, task)
    losses = [toys.step(defense, network, optimizer, batch) for _ in range(steps)]
    memory = [state.values for state in defense.states.values()]
    return [losses, [p.detach() for p in network.parameters()], memory]


def assert_same(found: list[Any], expected: list[Any], what: object) -> None:
    assert found[0] == expected[0], what
    for one, two in zip(found[1] + found[2], expected[1] + expected[2], strict=True):
        assert torch.equal(one, two), what


def refusal(key: str, batch: Batch, network: nn.Module | None = None, task: Any = None) -> str:
    """What the first step says."""
    network = classifier() if network is None else network
    defense, optimizer = ready(key, network, task)
    before = [p.detach().clone() for p in network.parameters()]
    with pytest.raises(InputError) as error:
        toys.step(defense, network, optimizer, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True)), "a step was made"
    return str(error.value)


# ------------------------------------------------------------------ labels of a classification


@every_method
def test_every_layout_of_a_label_is_the_same_training(key: str) -> None:
    layouts: list[Tensor | list[Tensor]] = [
        LABELS[:, None], LABELS.int(), LABELS.to(torch.uint8), LABELS.float(), LABELS.half()[:, None],
        F.one_hot(LABELS), F.one_hot(LABELS).float(), F.one_hot(LABELS).bool(), [LABELS],
    ]  # fmt: skip
    expected = trained(key, classifier(), Batch(IMAGES, LABELS, IDS))
    for label in layouts:
        assert_same(trained(key, classifier(), Batch(IMAGES, label, IDS)), expected, label)
    expected = trained(key, classifier(2), Batch(IMAGES, BINARY, IDS))
    assert_same(trained(key, classifier(2), Batch(IMAGES, BINARY.bool(), IDS)), expected, "bool")


@every_method
def test_a_single_logit_is_two_logits(key: str) -> None:
    expected = trained(key, OneLogit("two"), Batch(IMAGES, BINARY, IDS), steps=2)
    for layout, label in (("(B, 1)", BINARY[:, None].float()), ("(B,)", BINARY), ("(B, 1)", F.one_hot(BINARY))):
        found = trained(key, OneLogit(layout), Batch(IMAGES, label, IDS), steps=2)
        torch.testing.assert_close(found, expected)  # the halves of z's gradient are added elsewhere


@every_method
def test_labels_that_no_class_has_are_refused_before_the_first_step(key: str) -> None:
    for bad, received in (
        (LABELS + 1, "[3]"),
        (torch.where(LABELS == 2, -1, LABELS), "[-1]"),
        (torch.where(LABELS == 2, -100, LABELS), "[-100]"),  # which torch's cross-entropy leaves out
        (LABELS + 0.25, "[0.25, 1.25, 2.25]"),
        (torch.where(LABELS == 2, torch.nan, 1.0), "[nan, nan]"),
    ):
        said = refusal(key, Batch(IMAGES, bad, IDS))
        assert f"target: received {received}, allowed is whole numbers from 0 to 2; see the labels" in said
    for soft in (torch.full((SIZE, 3), 1 / 3), torch.tensor([[1, 1, 0]]).expand(SIZE, 3)):
        said = refusal(key, Batch(IMAGES, soft, IDS))
        assert "soft labels, or several labels per sample" in said
        assert "or the argmax of soft labels" in said


def test_a_loss_of_ones_own_is_not_asked_before_the_labels_are_checked() -> None:
    def never(output: Any, target: Any) -> Tensor:
        raise AssertionError

    said = refusal("standard", Batch(IMAGES, LABELS + 1, IDS), task=ClassificationTask(never))
    assert "target: received [3]" in said


class Counting(ClassificationTask):
    """Classification that says how often it was asked to check."""

    seen: ClassVar[list[int]] = []

    def check(self, output: Any, target: Any) -> None:
        self.seen.append(len(target))
        super().check(output, target)


def test_labels_are_looked_at_once_in_every_batch_on_the_cpu() -> None:
    """On a GPU in the first batch only, because a check waits for it."""
    for key in METHODS:
        Counting.seen.clear()
        defense, optimizer = ready(key, network := classifier(), Counting())
        given = defense.task
        for _ in range(2):
            toys.step(defense, network, optimizer, Batch(IMAGES, LABELS, IDS))
        assert len(Counting.seen) == 2 + (key == "fgsmrs"), key  # which watches itself with an attack of its own
        with pytest.raises(InputError, match=r"target: received \[3\], allowed is whole numbers from 0 to 2"):
            toys.step(defense, network, optimizer, Batch(IMAGES, LABELS + 1, IDS))
        toys.step(defense, network, optimizer, Batch(IMAGES, LABELS, IDS))
        assert defense.task is given, key


# ------------------------------------------------------------------ layouts of a batch


@every_method
@pytest.mark.parametrize(
    ("images", "target", "said"),
    [
        ((IMAGES * 10).to(torch.uint8), LABELS, "images: received 'torch.uint8 (6, 1, 8, 8)', allowed is a float"),
        (IMAGES[:0], LABELS[:0], "images: received 'torch.float32 (0, 1, 8, 8)', allowed is a float"),
        (IMAGES[:, 0, 0, 0], LABELS, "images: received 'torch.float32 (6,)', allowed is a float"),
        (IMAGES.numpy(), LABELS, "images: received 'ndarray', allowed is a float"),
        (IMAGES, LABELS[:5], "target: received 'torch.int64 (5,)', allowed is a tensor (B, ...) with B = 6"),
        (IMAGES, LABELS[:1], "target: received 'torch.int64 (1,)', allowed is a tensor (B, ...) with B = 6"),
        (IMAGES, LABELS[0], "target: received 'torch.int64 ()', allowed is a tensor (B, ...) with B = 6"),
        (IMAGES, LABELS.tolist(), "target: received 'int', allowed is a tensor (B, ...) with B = 6"),
        (IMAGES, LABELS.numpy(), "target: received 'ndarray', allowed is a tensor (B, ...) with B = 6"),
        (IMAGES, torch.zeros(SIZE, 4), "target: received (6, 4), allowed is class indices (B,) or (B, 1)"),
    ],
    ids=["uint8", "empty", "1 axis", "numpy images", "short", "one", "number", "list", "numpy", "4 columns"],
)
def test_what_is_no_batch(key: str, images: Any, target: Any, said: str) -> None:
    assert said in refusal(key, Batch(images, target, IDS))


@every_method
def test_tensors_with_meta_data_are_tensors(key: str) -> None:
    expected = trained(key, classifier(), Batch(IMAGES, LABELS, IDS))
    batch = Batch(MetaTensor(IMAGES), MetaTensor(LABELS), MetaTensor(IDS))
    assert_same(trained(key, classifier(), batch), expected, "MetaTensor")
    defense, _ = ready(key, network := classifier())
    for part in defense.losses(network, batch):
        torch.autograd.backward(part.loss)
        assert all(type(t) is Tensor for t in (part.loss, part.output, part.noisy_output) if t is not None)


@every_method
def test_nan_in_an_image_is_not_hidden(key: str) -> None:
    """Documented: the loss says it."""
    images = IMAGES.clone()
    images[2, 0, 4, 4] = torch.nan
    defense, optimizer = ready(key, network := classifier())
    losses = toys.step(defense, network, optimizer, Batch(images, LABELS, IDS))
    assert any(loss != loss for loss in losses)


# ------------------------------------------------------------------ ids


@with_memory
def test_ids_of_any_whole_number_type(key: str) -> None:
    expected = trained(key, classifier(), Batch(IMAGES, LABELS, IDS), steps=2)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        found = trained(key, classifier(), Batch(IMAGES, LABELS, IDS.to(dtype)), steps=2)
        assert_same(found, expected, dtype)


@with_memory
@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (None, "ids: received None, allowed is (B,) indices"),
        (IDS + 9, "ids: received [12, 13, 14], allowed is indices from 0 to 11; 12 samples were announced with bind"),
        (IDS - 1, "ids: received [-1], allowed is indices from 0 to 11"),
        (IDS.float(), "ids: received 'torch.float32 (6,)', allowed is a tensor (6,) of whole numbers"),
        (IDS > 2, "ids: received 'torch.bool (6,)', allowed is a tensor (6,) of whole numbers"),
        (IDS[:, None], "ids: received 'torch.int64 (6, 1)', allowed is a tensor (6,) of whole numbers"),
        (IDS[:3], "ids: received 'torch.int64 (3,)', allowed is a tensor (6,) of whole numbers"),
        (IDS.tolist(), "ids: received 'list', allowed is a tensor (6,) of whole numbers"),
    ],
    ids=["none", "more than announced", "negative", "float", "mask", "column", "short", "list"],
)
def test_ids_that_are_none(key: str, ids: Any, said: str) -> None:
    assert said in refusal(key, Batch(IMAGES, LABELS, ids))


@with_memory
def test_ids_of_every_batch_are_checked_on_the_cpu(key: str) -> None:
    defense, optimizer = ready(key, network := classifier())
    toys.step(defense, network, optimizer, Batch(IMAGES, LABELS, IDS))
    before = [state.values.clone() for state in defense.states.values()]
    with pytest.raises(InputError, match=r"ids: received \[12\]"):
        toys.step(defense, network, optimizer, Batch(IMAGES, LABELS, IDS + 7))
    assert all(torch.equal(a, s.values) for a, s in zip(before, defense.states.values(), strict=True))


@with_memory
def test_unannounced_samples_are_missed_at_the_first_step(key: str) -> None:
    """Also where the memory is not used yet: nobody wants to hear of it in the middle of a training."""
    for epoch in (0, 3):
        defense = METHODS[key].defense(ClassificationTask(), METHODS[key].settings())
        defense.on_epoch_start(epoch, 4)
        with pytest.raises(InputError, match=f"{METHODS[key].name}: no samples are known; call the defence's bind"):
            defense(classifier(), IMAGES, LABELS, IDS)


def test_samples_announced_for_another_device() -> None:
    """The check looks at nothing but the device, so the device without data stands for a GPU here."""
    ima = IMA(ClassificationTask(), IMASettings())
    ima.bind(SampleIds({"train": SAMPLES}), "cpu")
    with pytest.raises(InputError, match="images: received 'a tensor on meta', allowed is on cpu, as bind"):
        ima(classifier(), IMAGES.to("meta"), LABELS, IDS)


@pytest.mark.parametrize("key", [key for key, m in METHODS.items() if not m.defense.needs_ids])
def test_methods_without_memory_do_not_read_ids(key: str) -> None:
    expected = trained(key, classifier(), Batch(IMAGES, LABELS))
    assert_same(trained(key, classifier(), Batch(IMAGES, LABELS, IDS - 99)), expected, "ids")


# ------------------------------------------------------------------ networks


@every_method
def test_one_sample_with_batch_norm_keeps_torchs_own_message(key: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    defense, optimizer = ready(key, network)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        toys.step(defense, network, optimizer, Batch(IMAGES[:1], LABELS[:1], IDS[:1]))


def test_one_attacked_sample_with_batch_norm() -> None:
    """Documented: the attack of a single sample of a batch needs eval mode, which is the default."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    with torch.no_grad():
        right = network(IMAGES).argmax(1)
    labels = torch.where(IDS == 2, right, (right + 1) % 3)  # IMA attacks the one that is right
    defense, _ = ready("ima", network)
    torch.autograd.backward(defense(network, IMAGES, labels, IDS))
    assert defense.on_epoch_end()["attacked"] == pytest.approx(1 / 6)
    defense, _ = ready("ima", network, attack_mode="train")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        defense(network, IMAGES, labels, IDS)


def test_an_output_that_is_no_row_per_sample() -> None:
    said = refusal("sat", Batch(IMAGES, LABELS, IDS), network=nn.Conv2d(1, 3, 3))
    assert "output: received (6, 3, 6, 6), allowed is logits (B, K), or (B, 1) for a single-logit head" in said


# ------------------------------------------------------------------ segmentation


def map_loss(output: Any, target: Any) -> Tensor:
    """A host's loss that takes labels of any type; of single logits the mean, whatever the label."""
    if output.shape[1] == 1:
        return output.mean()  # type: ignore[no-any-return]
    return F.cross_entropy(output, target[:, 0].long().clamp(0, output.shape[1] - 1))


def segmentation_task(**given: Any) -> SegmentationTask:
    return SegmentationTask(map_loss, SegmentationSettings(threshold=0.05), **given)


@for_segmentation
def test_every_type_of_a_label_map_is_the_same_training(key: str) -> None:
    expected = trained(key, segmenter(), Batch(IMAGES, MAPS, IDS), segmentation_task())
    for dtype in (torch.int32, torch.uint8, torch.float32, torch.float16, torch.bool):
        found = trained(key, segmenter(), Batch(IMAGES, MAPS.to(dtype), IDS), segmentation_task())
        assert_same(found, expected, dtype)


@for_segmentation
def test_a_label_map_that_no_class_has_is_refused_before_the_first_step(key: str) -> None:
    said = refusal(key, Batch(IMAGES, 5 * MAPS, IDS), segmenter(), segmentation_task())
    assert "target: received [5], allowed is whole numbers from 0 to 1; see the label's transforms, or give" in said


@pytest.mark.parametrize(
    ("target", "heads", "given", "said"),
    [
        (MAPS[:, 0], 2, {}, "received '(6, 8, 8) for a network output (6, 2, 8, 8)', allowed is (B, 1, *spatial)"),
        (torch.cat([1 - MAPS, MAPS], 1), 2, {}, "one-hot maps: take argmax(1, keepdim=True)"),
        (MAPS[..., ::2], 2, {}, "target: received '(6, 1, 8, 4) for a network output (6, 2, 8, 8)'"),
        (MAPS / 2, 2, {}, "target: received [0.5], allowed is whole numbers from 0 to 1"),
        (MAPS, 1, {}, "regions: received False, allowed is True for a network with one output channel"),
        (MAPS, 2, {"regions": True}, "allowed is (B, 2, *spatial) with a 0/1 map for each output channel"),
        (255 * MAPS, 1, {"regions": True}, "target: received [255], allowed is whole numbers from 0 to 1"),
        (MAPS, 1, {"regions": True, "ignore_label": 9}, "allowed is (B, 2, *spatial)"),
    ],
    ids=["no channel", "one-hot", "half", "fractions", "one logit", "regions", "0/255 regions", "no ignore channel"],
)
def test_label_maps_that_do_not_fit(target: Tensor, heads: int, given: dict[str, Any], said: str) -> None:
    task = segmentation_task(**given)
    assert said in refusal("sat", Batch(IMAGES, target, IDS), segmenter(heads), task)


def test_an_ignored_label_is_known() -> None:
    target = torch.where(IMAGES > 1, 255, MAPS)
    assert "received [255]" in refusal("sat", Batch(IMAGES, target, IDS), segmenter(), segmentation_task())
    task = segmentation_task(ignore_label=255)
    task.check(segmenter()(IMAGES), target)
    regions = segmentation_task(regions=True, ignore_label=255)
    regions.check(segmenter(1)(IMAGES), torch.cat([MAPS, (IMAGES > 1).long()], 1))


def test_masks_of_truth_values_in_monai() -> None:
    """As MONAI's transforms for overlapping regions make them."""
    output, mask = torch.zeros(SIZE, 2, 8, 8), MAPS.bool()
    assert layout_of(output, mask, None).regions is False
    assert layout_of(output, torch.cat([mask, mask], 1), None).regions is True
    one_hot = torch.cat([~mask, mask], 1)
    layout = layout_of(output, one_hot, None)
    assert layout.classes == 2
    assert torch.equal(layout.to_task(one_hot), MAPS)
    assert torch.equal(layout.to_bundle(layout.to_task(one_hot)), one_hot)


# ------------------------------------------------------------------ misspelt names


def wrong_end(name: str) -> str:
    return name[:-2] + name[-1]


@every_method
def test_a_misspelt_method_names_the_nearest(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = METHODS[key].name
    typo = f"{name[0]}_{name[1:]}"
    assert cli.main(["methods", typo]) == 2
    said = capsys.readouterr().err
    assert f"monai-adv: method: received '{typo}', allowed is one of GAIRAT, MART, SAT, " in said
    assert said.endswith(f"; did you mean '{name}'?\n")
    assert cli.main(["methods", key]) == 0  # whatever the case
    assert f"{METHODS[key].defense.__module__}.{name}" in capsys.readouterr().out.replace("\n", "")


@every_method
def test_misspelt_presets_and_settings_name_the_nearest(key: str) -> None:
    method = METHODS[key]

    def said(settings: dict[str, Any]) -> str:
        with pytest.raises(InputError) as error:
            engine_toys.trainer(
                getattr(engines, method.trainer), engine_toys.class_list(), engine_toys.noisy_classifier(),
                settings=settings,
            )  # fmt: skip
        return str(error.value)

    assert said({"bx": None}) == "bx: unknown setting; did you mean 'box'?"
    presets = list(dict.fromkeys([*method.presets, "finetune"]))  # which every trainer has
    for name in presets:
        typo = f"{name[0]}_{name[1:]}"
        allowed = f"preset: received '{typo}', allowed is one of {', '.join(presets)}; did you mean '{name}'?"
        assert said({"preset": typo}) == allowed
