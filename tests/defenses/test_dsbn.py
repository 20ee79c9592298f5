"""DSBN: which branch sees what, equal branches are a plain network, optimiser, DDP, cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv import InputError
from monai_adv.defenses import Batch
from monai_adv.defenses.dsbn import DSBN
from monai_adv.networks import branch, noisy_parameters
from monai_adv.networks.dual_batch_norm import converted
from monai_adv.tasks import ClassificationTask
from tests.defense_toys import Classifier
from tests.loss_parts import KINDS, gradients, make, problem, run

ATTACK = {"eps": 0.2, "steps": 2}


def prepared(kind: str) -> tuple[Any, nn.Module, Batch]:
    """Task, converted network, batch."""
    one, batch = problem(kind)
    return one.task, DSBN.prepare(one.network), batch


def statistics(network: nn.Module) -> list[dict[str, Tensor]]:
    """The buffers of the clean and of the noisy branch, copied."""
    (layer,) = converted(network)
    return [{k: v.clone() for k, v in side.named_buffers()} for side in (layer.clean, layer.noisy)]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_branches_and_radius_0_are_twice_standard_bit_for_bit(kind: str) -> None:
    (clean,), expected = gradients("standard", kind)
    task, network, batch = prepared(kind)
    assert run(make("dsbn", task, eps=0), network, batch) == [2 * clean]
    (layer,) = converted(network)
    for one, two in zip(layer.clean.parameters(), layer.noisy.parameters(), strict=True):
        assert one.grad is not None
        assert two.grad is not None
        assert torch.equal(one.grad, two.grad)
        one.grad = one.grad + two.grad
    noisy = noisy_parameters(network)
    found = [p.grad for p in network.parameters() if all(p is not n for n in noisy)]
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, 2 * two)


def test_each_branch_sees_its_own_images() -> None:
    """Running means after one step from momentum 1: those of clean and of attacked images; the attack leaves none."""
    torch.manual_seed(0)
    network = DSBN.prepare(nn.Sequential(nn.BatchNorm1d(3, momentum=1.0), nn.Linear(3, 2)))
    batch = Batch(torch.randn(8, 3), torch.tensor([0, 1] * 4))
    dsbn = make("dsbn", ClassificationTask(), norm="linf", eps=0.5, steps=2, start="clean", attack_mode="train")
    with branch(network, "noisy"):
        attacked, _, _ = dsbn.attack(network, batch, dsbn.settings.ascent())
    assert not torch.equal(attacked, batch.images)
    run(dsbn, network, batch)
    clean, noisy = statistics(network)
    torch.testing.assert_close(clean["running_mean"], batch.images.mean(0))
    torch.testing.assert_close(noisy["running_mean"], attacked.mean(0))


def test_the_attack_goes_through_the_noisy_branch() -> None:
    """A noisy branch that turns the sign of everything is attacked in the opposite direction."""
    network = DSBN.prepare(nn.Sequential(nn.BatchNorm1d(1, affine=True), nn.Linear(1, 1, bias=False)))
    (layer,) = converted(network)
    with torch.no_grad():
        network[1].weight.fill_(1.0)
        layer.noisy.weight.fill_(-1.0)
    seen: dict[str, Tensor] = {}
    layer.noisy.register_forward_pre_hook(lambda module, inputs: seen.update(noisy=inputs[0].detach().clone()))
    layer.clean.register_forward_pre_hook(lambda module, inputs: seen.update(clean=inputs[0].detach().clone()))
    dsbn = make("dsbn", ClassificationTask(), norm="linf", eps=0.25, steps=1, relative_step=1.0, start="clean")
    run(dsbn, network, Batch(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0])))
    assert seen["clean"].tolist() == [[1.0], [2.0]]
    assert seen["noisy"].tolist() == [[1.25], [1.75]]  # the clean branch would be fooled by 0.75 and 2.25


def test_the_branch_is_as_before_also_after_an_exception() -> None:
    task, network, batch = prepared("2 classes")
    dsbn = make("dsbn", task, **ATTACK)
    run(dsbn, network, batch)
    (layer,) = converted(network)
    assert layer.active == "clean"
    with pytest.raises(RuntimeError, match="channels"):
        run(dsbn, network, Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1])))
    assert layer.active == "clean"


@pytest.mark.parametrize("kind", KINDS)
def test_cost_is_2_k_plus_6(kind: str) -> None:
    task, network, batch = prepared(kind)
    dsbn = make("dsbn", task, eps=0.2, steps=4)
    run(dsbn, network, batch)
    assert dsbn.statistics.passes.in_forwards() == (2 * 4 + 6) * len(batch.images)


def test_prepare_twice_is_prepare_once() -> None:
    _, network, _ = prepared("2 classes")
    names = [name for name, _ in network.named_parameters()]
    assert [name for name, _ in DSBN.prepare(network).named_parameters()] == names


def test_attach_converts_and_gives_the_new_weights_to_the_group_of_their_clean_twins() -> None:
    network = Classifier(2)
    norm = network.body[1]
    others = [p for p in network.parameters() if all(p is not n for n in norm.parameters())]
    groups = [{"params": others, "weight_decay": 0.1}, {"params": list(norm.parameters()), "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, 0.1, momentum=0.9)
    dsbn = make("dsbn", ClassificationTask(), **ATTACK)
    for _ in range(2):  # once more changes nothing
        dsbn.attach(network, optimizer)
        assert [len(g["params"]) for g in optimizer.param_groups] == [len(others), 4]
    before = [p.detach().clone() for p in noisy_parameters(network)]
    run(dsbn, network, Batch(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 1, 0])))
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, noisy_parameters(network), strict=True))


def test_attach_after_prepare_adds_nothing() -> None:
    _, network, _ = prepared("2 classes")
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    make("dsbn", ClassificationTask()).attach(network, optimizer)
    assert len(optimizer.param_groups[0]["params"]) == len(list(network.parameters()))


def test_ddp_gives_the_gradients_of_the_bare_network(tmp_path: object) -> None:
    """All weights of both branches, in one backward, without find_unused_parameters."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        found = []
        for wrap in (False, True):
            task, network, batch = prepared("segmentation 2D")
            dsbn = make("dsbn", task, **ATTACK)
            run(dsbn, DistributedDataParallel(network) if wrap else network, batch)
            found.append([p.grad for p in network.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        wrapped = DistributedDataParallel(Classifier(2))
        with pytest.raises(InputError, match="a network before DDP wraps it"):
            make("dsbn", ClassificationTask()).attach(wrapped)
    finally:
        torch.distributed.destroy_process_group()


def test_a_network_without_such_layers_and_one_that_nobody_converted() -> None:
    with pytest.raises(InputError, match="network: received 'Linear', allowed is a network with BatchNorm"):
        DSBN.prepare(nn.Linear(2, 2))
    with pytest.raises(InputError, match="it has one branch; call attach"):
        run(make("dsbn", ClassificationTask()), Classifier(2), Batch(torch.randn(2, 1, 8, 8), torch.tensor([0, 1])))
