"""BatchNorm folded into convolutions: the closed form, the same gradient, and what must not be folded."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from monai.inferers.inferer import SlidingWindowInferer
from monai.networks.nets.unet import UNet
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.networks.fused import fused
from monai_adv.networks.inferer import BundleNetwork
from monai_adv.networks.resnet import drop_max_resnet18


def statistics(network: nn.Module) -> nn.Module:
    """Far from those of a new network, with which BatchNorm does next to nothing."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.3, 3.0, generator=generator)  # type: ignore[union-attr]
            with torch.no_grad():
                layer.weight.normal_(generator=generator)
                layer.bias.normal_(generator=generator)
    return network


def norms(network: nn.Module) -> int:
    return sum(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in network.modules())


def answer(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient."""
    x = images.clone().requires_grad_()
    output = network(x)
    (gradient,) = torch.autograd.grad(output.square().sum(), x)
    return output.detach(), gradient


def same(network: nn.Module, copied: nn.Module, images: Tensor) -> None:
    for found, wanted in zip(answer(copied, images), answer(network.eval(), images), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-9)


def pair(**options: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3, **options), nn.BatchNorm2d(2))


def images(count: int = 3, size: tuple[int, ...] = (6, 6)) -> Tensor:
    return torch.rand(count, 1, *size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_the_closed_form() -> None:
    """conv = 2 x + 1, BatchNorm = 3 (y - 5) / sqrt(4) - 1: together 3 x - 7."""
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=0.0))
    convolution, norm = network
    values = (convolution.weight, 2), (convolution.bias, 1), (norm.weight, 3), (norm.bias, -1)
    with torch.no_grad():
        for tensor, value in (*values, (norm.running_mean, 5), (norm.running_var, 4)):
            tensor.fill_(value)  # type: ignore[union-attr, operator]
    copied = fused(network, torch.ones(1, 1, 2, 2))
    assert (copied[0].weight.item(), copied[0].bias.item()) == (3.0, -7.0)  # type: ignore[index]
    assert copied(torch.full((1, 1, 1, 1), 4.0)).item() == 5.0


class Block(nn.Module):
    """Residual, as most networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 1, 1)
        )
        self.norm = nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.norm(self.body(x))


class ManyWays(nn.Module):
    """Control flow that no symbolic trace follows, around parts that it does."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.head = nn.Sequential(nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if x.mean() > -1e9:
                x = block(x)
        return self.head(x)


class Listed(nn.Module):
    """Takes its layers out of their container one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*pair(), nn.ReLU(), nn.Flatten(), nn.Linear(1800, 2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            assert float(x.detach().sum()) > -1e9
        return x


class Viewing(nn.Module):
    """``.view`` of features, which another memory layout does not allow."""

    def __init__(self) -> None:
        super().__init__()
        self.body = pair()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).view(len(x), -1)


class Grouped(nn.Module):
    """Called twice, always before the same BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.convolution(self.norm(self.convolution(x)).relu()))


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (Block, 0),
        (ManyWays, 0),
        (Grouped, 0),
        (lambda: nn.Sequential(nn.ConvTranspose2d(1, 4, 2, stride=2), nn.BatchNorm2d(4)), 0),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(2, affine=True)
            ),
            0,
        ),
        (lambda: UNet(2, 1, 2, channels=(4, 8), strides=(2,), num_res_units=2, norm="batch"), 0),
        (lambda: drop_max_resnet18(2, 1, 2, widen_factor=0.125), 0),
        (lambda: BundleNetwork(Block(), SlidingWindowInferer((4, 4), overlap=0.5)), 0),
        (Viewing, 0),
        (Listed, 0),
        # The BatchNorm in front has no convolution before it.
        (lambda: nn.Sequential(nn.BatchNorm2d(1), *pair()), 1),
        (
            lambda: nn.Sequential(
                nn.Conv2d(1, 4, 1), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4), Block4()
            ),
            1,
        ),
    ],
)
def test_output_and_gradient_stay_and_batch_norm_goes(make: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    network = statistics(make()).double()
    x = images(size=(32, 32))
    copied = fused(network, x)
    assert norms(copied) == left < norms(network)
    same(network, copied, x)
    same(network, copied, x[:1])  # a batch of one has no layout of its own


class Block4(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 1, 1), nn.BatchNorm2d(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("axes", [1, 3])
def test_signals_and_volumes(axes: int) -> None:
    convolution, norm = (nn.Conv1d, nn.BatchNorm1d) if axes == 1 else (nn.Conv3d, nn.BatchNorm3d)
    network = statistics(nn.Sequential(convolution(1, 2, 3), norm(2))).double()
    x = images(2, (5,) * axes)
    copied = fused(network, x)
    assert norms(copied) == 0
    same(network, copied, x)


def test_channels_last_is_for_images_on_a_cpu() -> None:
    last = torch.channels_last
    network = statistics(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))).double()
    assert fused(network, images())[2].weight.is_contiguous(memory_format=last)  # type: ignore[index]
    assert network[2].weight.is_contiguous()
    viewing = nn.Sequential(network, Viewing4()).double()
    assert fused(viewing, images())[0][2].weight.is_contiguous()  # type: ignore[index]


class Viewing4(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.view(len(x), -1)


def test_the_network_stays_as_it_was() -> None:
    seen: list[int] = []
    network = statistics(nn.Sequential(*pair(), nn.Dropout(0.5))).train()
    network[0].weight.requires_grad_(False)
    network[2].register_forward_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(network.state_dict())
    layers, flags = list(network), [p.requires_grad for p in network.parameters()]
    copied = fused(network, images().float())
    assert all(torch.equal(network.state_dict()[name], value) for name, value in before.items())
    assert all(a is b for a, b in zip(network, layers, strict=True))
    assert [p.requires_grad for p in network.parameters()] == flags == [False, True, True, True]
    assert all(layer.training for layer in network.modules())
    assert not any(layer.training for layer in copied.modules())
    assert not any(p.requires_grad for p in copied.parameters())
    assert len(network[2]._forward_hooks) == 1
    assert all(not layer._forward_pre_hooks for layer in [*network.modules(), *copied.modules()])
    shared = {p.data_ptr() for p in network.parameters()} & {p.data_ptr() for p in copied.parameters()}
    assert not shared
    assert len(seen) == 2  # of the network and of its copy, as they are compared


class Shared(nn.Module):
    """One convolution with two BatchNorms; with ``alias`` each of them beside its own name for it."""

    def __init__(self, alias: bool = False) -> None:
        super().__init__()
        self.convolution, self.one, self.other = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.BatchNorm2d(2)
        self.ways = nn.ModuleList([nn.Sequential(self.convolution, n) for n in (self.one, self.other)]) if alias else ()
        self.last = pair()

    def forward(self, x: Tensor) -> Tensor:
        if self.ways:
            one, other = (way(x) for way in self.ways)
        else:
            one, other = self.one(self.convolution(x)), self.other(self.convolution(x))
        return one * other + self.last(x)


class Read(nn.Module):
    """Something else reads the convolution as well."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm, self.last = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), pair()

    def forward(self, x: Tensor) -> Tensor:
        found = self.convolution(x)
        return self.norm(found) * found + self.last(x)


def hooked(layer: int, post: bool) -> nn.Module:
    network = nn.Sequential(*pair(), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    if post:
        network[layer].register_forward_hook(lambda _, __, output: output.relu())
    else:
        network[layer].register_forward_pre_hook(lambda _, inputs: (inputs[0].relu(),))
    return network


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (Shared, 2),
        (lambda: Shared(alias=True), 2),
        (Read, 1),
        (lambda: hooked(0, post=True), 1),
        (lambda: hooked(1, post=False), 1),
        (
            lambda: nn.Sequential(
                nn.utils.parametrizations.spectral_norm(nn.Conv2d(1, 1, 3)), nn.BatchNorm2d(1), *pair()
            ),
            1,
        ),
        (lambda: nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(1, 1, 3)), nn.BatchNorm2d(1), *pair()), 1),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1, track_running_stats=False), *pair()), 1),
    ],
)
def test_what_must_not_be_folded_is_not(make: Callable[[], nn.Module], left: int) -> None:
    torch.manual_seed(0)
    network = statistics(make()).double()
    copied = fused(network, images())
    assert norms(copied) == left == norms(network) - 1
    same(network, copied, images())


def test_one_convolution_in_two_parts_is_folded_in_each_for_itself() -> None:
    class Parts(Shared):
        def forward(self, x: Tensor) -> Tensor:
            assert x.mean() > -1e9  # no trace of the whole
            return super().forward(x)

    torch.manual_seed(0)
    network = statistics(Parts(alias=True)).double()
    copied = fused(network, images())
    same(network, copied, images())


def test_all_resolutions_of_deep_supervision_are_compared() -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = pair(), pair()

        def forward(self, x: Tensor) -> list[Tensor]:
            return [self.first(x), self.second(x[..., ::2, ::2])]

    network = statistics(Deep()).double()
    copied = fused(network, images(size=(8, 8)))
    for found, wanted in zip(copied(images(size=(8, 8))), network.eval()(images(size=(8, 8))), strict=True):
        assert torch.allclose(found, wanted, atol=1e-12)
    assert norms(copied) == 0


def test_batch_norm_that_is_asked_by_name_is_told() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = pair()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) * self.body[1].running_var.view(1, -1, 1, 1)  # type: ignore[union-attr, operator]

    with pytest.raises(InputError, match="fails without its BatchNorm .*'Identity' object has no attribute"):
        fused(statistics(Asks()), images().float())


def test_a_copy_that_answers_otherwise_is_refused() -> None:
    class Outside(nn.Module):
        """Reads the weights past the layer: one more user, which no trace of its parts shows."""

        def __init__(self) -> None:
            super().__init__()
            self.body = pair()

        def forward(self, x: Tensor) -> Tensor:
            assert x.mean() > -1e9
            return self.body(x) + self.body[0](x)

    with pytest.raises(
        InputError, match="fuse: received 'a network whose copy is off by .*0.0001, a matter of rounding"
    ):
        fused(statistics(Outside()), images().float())


def test_broken_outputs_stay_broken() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = pair()

        def forward(self, x: Tensor) -> Tensor:
            return torch.where(x.flatten(1).mean(1).view(-1, 1, 1, 1) > 0.5, torch.nan, self.body(x))

    network, x = statistics(Broken()).double(), images()
    x[0] += 1
    assert (
        fused(network, x)(x).isnan().flatten(1).all(1).tolist() == network.eval()(x).isnan().flatten(1).all(1).tolist()
    )


@pytest.mark.parametrize(
    ("network", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2)), "received 'no BatchNorm right after a convolution'"),
        (nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)), "allowed is a network with one; leave it out"),
    ],
)
def test_nothing_to_fold(network: nn.Module, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fused(network, images().float())


def test_what_cannot_be_copied_is_told() -> None:
    network = pair()
    network.extra = (network[0].weight * 1,)  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot be copied .*explicitly by the user"):
        fused(network, images().float())


def test_a_compiled_network_is_told() -> None:
    with pytest.raises(InputError, match="received 'a compiled network', allowed is one before torch.compile"):
        fused(torch.compile(pair()), images().float())  # type: ignore[arg-type]
