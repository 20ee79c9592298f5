"""The papers' networks: shapes, names and sizes of the originals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from monai.networks.nets.resnet import ResNet
from torch import nn

from monai_adv.errors import InputError
from monai_adv.networks import (
    VGG16,
    DropMaxPool2d,
    drop_max_resnet18,
    drop_max_resnet50,
    instance_norm_resnet18,
    vgg16,
    vgg16_bn,
)


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_sizes_are_those_of_the_imagenet_networks() -> None:
    with torch.device("meta"):
        assert size(drop_max_resnet18(2, 3, 1000)) == 11_689_512
        assert size(drop_max_resnet50(2, 3, 1000)) == 25_557_032
        assert size(vgg16(3, 1000)) == 138_357_544
        assert size(vgg16_bn(3, 1000)) == 138_365_992


def test_names_are_those_of_the_imagenet_weights() -> None:
    with torch.device("meta"):
        plain, norm = vgg16(3, 1000).state_dict(), vgg16_bn(3, 1000).state_dict()
        resnet = drop_max_resnet50(2, 3, 1000).state_dict()
    assert list(plain)[:3] == ["features.0.weight", "features.0.bias", "features.2.weight"]
    assert list(plain)[-3:] == ["classifier.3.bias", "classifier.6.weight", "classifier.6.bias"]
    assert plain["features.28.weight"].shape == (512, 512, 3, 3)
    assert plain["classifier.0.weight"].shape == (4096, 25088)
    assert norm["features.40.weight"].shape == (512, 512, 3, 3)
    assert norm["features.41.running_var"].shape == (512,)
    assert resnet["conv1.weight"].shape == (64, 3, 7, 7)
    assert resnet["layer2.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert resnet["fc.weight"].shape == (1000, 2048)
    assert "layer2.0.downsample.0.bias" not in resnet


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("make", [drop_max_resnet18, instance_norm_resnet18])
def test_resnets_of_any_dimension(make: Any, dims: int) -> None:
    network = make(dims, 2, 5).eval()
    shapes: list[tuple[int, ...]] = []
    network.layer1.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    assert network(torch.rand(2, 2, *[40] * dims)).shape == (2, 5)
    # The stem divides by four.
    assert shapes == [(2, 64, *[10] * dims)]


def test_drop_max_changes_only_the_first_pooling() -> None:
    torch.manual_seed(0)
    mine = drop_max_resnet18(2, 1, 2).eval()
    theirs = ResNet(
        "basic", [2, 2, 2, 2], [64, 128, 256, 512], 2, 1, conv1_t_stride=2, num_classes=2, bias_downsample=False
    ).eval()
    theirs.load_state_dict(mine.state_dict())
    x = torch.rand(1, 1, 64, 64)
    assert not torch.equal(mine(x), theirs(x))
    theirs.maxpool = DropMaxPool2d(3, 2, 1)
    assert torch.equal(mine(x), theirs(x))
    assert isinstance(drop_max_resnet50(conv1_t_stride=1).maxpool, DropMaxPool2d)


def test_instance_norm_resnet() -> None:
    torch.manual_seed(0)
    network = instance_norm_resnet18()
    assert network.conv1.weight.shape == (64, 1, 7, 7)
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == 20
    assert all(m.num_groups == m.num_channels and m.affine for m in norms)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    x = torch.rand(3, 1, 64, 64)
    # Neither the mode nor the other images matter.
    together = network.train()(x)
    torch.testing.assert_close(network.eval()(x[:1]), together[:1])
    plain = instance_norm_resnet18(rescale=False)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(plain((x - 0.5) / 0.5), network(x))
    with pytest.raises(InputError, match="more than 32 elements"):
        network(torch.rand(2, 1, 32, 32))


def test_networks_can_be_narrower() -> None:
    """Half the channels on both sides of a layer are a quarter of its weights."""
    vgg, resnet = vgg16(2, widen_factor=0.5), instance_norm_resnet18(2, widen_factor=0.5)
    assert vgg.features[28].weight.shape == (256, 256, 3, 3)
    assert vgg.classifier[0].weight.shape == (2048, 256 * 49)
    assert resnet.layer4[1].conv2.weight.shape == (256, 256, 3, 3)
    assert vgg(torch.rand(1, 2, 32, 32)).shape == resnet(torch.rand(1, 1, 48, 48)).shape == (1, 2)


def test_vgg_takes_any_image_and_starts_as_the_original() -> None:
    torch.manual_seed(0)
    network = VGG16(1, 3, batch_norm=True).eval()
    assert network(torch.rand(2, 1, 33, 47)).shape == (2, 3)
    weights = network.features[40].weight
    # Kaiming, fan out: the variance is 2 / (512 * 9).
    assert weights.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert network.classifier[6].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not network.features[40].bias.any()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: drop_max_resnet18(4), "spatial_dims: received 4"),
        (lambda: vgg16(0), "in_channels: received 0"),
        (lambda: vgg16_bn(widen_factor=0.01), "widen_factor: received 0.01"),
        (lambda: instance_norm_resnet18(num_classes=1.5), "num_classes: received 1.5"),  # type: ignore[arg-type]
        (lambda: drop_max_resnet18(no_max_pool=True), "received 'ResNet'"),
    ],
)
def test_impossible_networks_are_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
