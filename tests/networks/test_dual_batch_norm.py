"""Two branches of normalisation: nothing changes until they are trained, and neither touches the other."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from monai.networks.nets.densenet import DenseNet121
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.networks import (
    DualNorm,
    branch,
    branch_state_dict,
    deploy_branch,
    drop_max_resnet18,
    dual_batch_norm,
    noisy_parameters,
)


def small(norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm(3), nn.ReLU(), nn.Sequential(nn.Conv2d(3, 2, 3), norm(2)))


def layers(network: nn.Module) -> list[DualNorm]:
    return [layer for layer in network.modules() if isinstance(layer, DualNorm)]


def images(seed: int = 1) -> Tensor:
    return torch.randn(4, 1, 9, 9, generator=torch.Generator().manual_seed(seed))


def trained() -> nn.Sequential:
    """A converted network whose branches have parted."""
    network = dual_batch_norm(small())
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for name in ("clean", "noisy"):
        with branch(network, name):  # type: ignore[arg-type]
            (network(images(ord(name[0]))) ** 2).sum().backward()
    optimiser.step()
    return network


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_equal_branches_are_the_plain_network_bit_for_bit(name: Any, training: bool) -> None:
    plain = small().train(training)
    dual = dual_batch_norm(copy.deepcopy(plain))
    x, y = images().requires_grad_(), images().requires_grad_()
    with branch(dual, name):
        result = dual(x)
    expected = plain(y)
    assert torch.equal(result, expected)
    result.square().sum().backward()
    expected.square().sum().backward()
    assert torch.equal(x.grad, y.grad)  # type: ignore[arg-type]
    for key, value in branch_state_dict(dual, name).items():
        assert torch.equal(value, plain.state_dict()[key])


def test_a_forward_leaves_the_other_branch_alone() -> None:
    network = dual_batch_norm(small())
    state = {key: value.clone() for key, value in network.state_dict().items()}
    with branch(network, "noisy"):
        network(images())
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, state[key])}
    assert changed == {key for key in state if ".noisy." in key and key.split(".")[-1] not in ("weight", "bias")}
    state = {key: value.clone() for key, value in network.state_dict().items()}
    network(images())  # clean is the default
    changed = {key for key, value in network.state_dict().items() if not torch.equal(value, state[key])}
    assert changed
    assert all(".clean." in key for key in changed)


def test_the_optimiser_still_holds_the_clean_branch() -> None:
    network = small()
    held = list(network.parameters())
    keys = dict(network.named_buffers())
    dual_batch_norm(network)
    fresh = noisy_parameters(network)
    assert {id(p) for p in network.parameters()} == {id(p) for p in [*held, *fresh]}
    assert len(fresh) == 4
    assert network[1].clean.running_mean is keys["1.running_mean"]
    assert network[1].noisy.running_mean is not keys["1.running_mean"]


def test_converting_twice_is_converting_once() -> None:
    network = dual_batch_norm(small())
    found = layers(network)
    assert dual_batch_norm(network) is network
    assert layers(network) == found
    assert len(found) == 2


def test_branches_nest_and_come_back_after_an_error() -> None:
    network = dual_batch_norm(small())
    deploy_branch(network, "noisy")

    def fail() -> None:
        with branch(network, "clean"), branch(network, "noisy"), branch(network, "clean"):
            assert {layer.active for layer in layers(network)} == {"clean"}
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert {layer.active for layer in layers(network)} == {"noisy"}


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(2), (3, 2, 5)),
        (nn.BatchNorm2d(2), (3, 2, 5, 5)),
        (nn.BatchNorm3d(2), (3, 2, 4, 4, 4)),
        (nn.BatchNorm2d(2, affine=False), (3, 2, 5, 5)),
        (nn.InstanceNorm1d(2, affine=True), (3, 2, 5)),
        (nn.InstanceNorm2d(2, affine=True), (3, 2, 5, 5)),
        (nn.InstanceNorm3d(2, affine=True, track_running_stats=True), (3, 2, 4, 4, 4)),
    ],
)
def test_every_kind_of_layer(norm: nn.Module, shape: tuple[int, ...]) -> None:
    network = nn.Sequential(nn.Identity(), norm)
    x = torch.randn(shape)
    expected = copy.deepcopy(network)(x)
    dual = dual_batch_norm(network)
    assert type(dual[1].clean) is type(dual[1].noisy) is type(norm)
    with branch(dual, "noisy"):
        assert torch.equal(dual(x), expected)


def test_sync_batch_norm_before_or_after() -> None:
    before = dual_batch_norm(nn.SyncBatchNorm.convert_sync_batchnorm(small()))
    after = nn.SyncBatchNorm.convert_sync_batchnorm(dual_batch_norm(small()))
    for network in (before, after):
        for layer in layers(network):
            assert isinstance(layer.clean, nn.SyncBatchNorm)
            assert isinstance(layer.noisy, nn.SyncBatchNorm)
        network.load_state_dict(small().state_dict())
    assert list(before.state_dict()) == list(after.state_dict())


def test_plain_checkpoints_fill_both_branches() -> None:
    plain = small()
    plain(images())
    dual = dual_batch_norm(small())
    assert not any(dual.load_state_dict(plain.state_dict()))
    for name in ("clean", "noisy"):
        back = branch_state_dict(dual, name)  # type: ignore[arg-type]
        assert list(back) == list(plain.state_dict())
        assert all(torch.equal(back[key], value) for key, value in plain.state_dict().items())
    broken = plain.state_dict()
    del broken["1.running_var"]
    broken["1.scale"] = torch.zeros(3)
    with pytest.raises(RuntimeError, match=r"(?s)1\.clean\.running_var.*1\.noisy\.scale"):
        dual.load_state_dict(broken)


def test_converted_checkpoints_and_copies_keep_both_branches() -> None:
    network = trained().eval()
    other = dual_batch_norm(small()).eval()
    other.load_state_dict(network.state_dict())
    plain = small().eval()
    x = images()
    for name in ("clean", "noisy"):
        plain.load_state_dict(branch_state_dict(network, name))  # type: ignore[arg-type]
        copies = [other, copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
        for one in [network, *copies]:
            with branch(one, name):  # type: ignore[arg-type]
                assert torch.equal(one(x), plain(x))
    with branch(network, "noisy"):
        noisy = network(x)
    assert not torch.equal(noisy, network(x))


def test_compiled_networks_switch_branches() -> None:
    network = trained().eval()
    compiled = torch.compile(network, backend="eager")
    for name in ("clean", "noisy", "clean"):
        with branch(network, name):  # type: ignore[arg-type]
            expected = network(images())
        with branch(compiled, name):  # type: ignore[arg-type]
            assert torch.equal(compiled(images()), expected)
    assert list(branch_state_dict(compiled, "noisy")) == list(small().state_dict())  # type: ignore[arg-type]


def test_real_networks_and_shared_layers() -> None:
    resnet = dual_batch_norm(drop_max_resnet18())
    assert len(layers(resnet)) == 20
    assert list(branch_state_dict(resnet, "noisy")) == list(drop_max_resnet18().state_dict())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in no_branches(dual_batch_norm(DenseNet121(2, 1, 2))))
    norm = nn.BatchNorm2d(3)
    shared = dual_batch_norm(nn.Sequential(norm, nn.ReLU(), norm))
    assert shared[0] is shared[2]


def no_branches(network: nn.Module) -> list[nn.Module]:
    inside = {child for layer in layers(network) for child in (layer.clean, layer.noisy)}
    return [m for m in network.modules() if m not in inside]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: dual_batch_norm(nn.Sequential(nn.Conv2d(1, 1, 1), nn.InstanceNorm2d(1))), "affine InstanceNorm"),
        (lambda: dual_batch_norm(nn.BatchNorm2d(1)), "wrap it"),
        (lambda: dual_batch_norm(nn.Sequential(nn.LazyBatchNorm2d())), "lazy layer 0"),
        (lambda: noisy_parameters(small()), "dual_batch_norm(network)"),
        (lambda: branch_state_dict(small(), "clean"), "dual_batch_norm(network)"),
        (lambda: deploy_branch(trained(), "dirty"), "branch: received 'dirty'"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_branches_is_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)
