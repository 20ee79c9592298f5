"""What holds for every defence of the registry, on classification and segmentation, 2D and 3D."""

from __future__ import annotations

import io
import math
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv.defenses import METHODS, Batch
from monai_adv.errors import InputError
from tests import defense_toys as toys
from tests.defense_toys import BATCH, SAMPLES, batches, optimizer_of, step, toy

CASES = toys.cases()
every_case = pytest.mark.parametrize(("key", "kind"), CASES, ids=[f"{k}, {t}" for k, t in CASES])
with_memory = pytest.mark.parametrize(
    ("key", "kind"), [(k, t) for k, t in CASES if METHODS[k].defense.needs_ids],
)  # fmt: skip
FIRST = torch.arange(BATCH)


def train(key: str, kind: str, epochs: list[Any], saved: bytes | None = None) -> tuple[Any, bytes]:
    """Train some epochs, maybe from a checkpoint; the weights and the checkpoint."""
    problem = toy(kind, key)
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    if saved is not None:
        checkpoint = torch.load(io.BytesIO(saved), weights_only=True)
        problem.network.load_state_dict(checkpoint["network"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        defense.load_state_dict(checkpoint["defense"])
    for epoch, ids_of_batches in epochs:
        defense.on_epoch_start(epoch, 4)
        for ids in ids_of_batches:
            step(defense, problem.network, optimizer, problem.batch(ids))
        figures = defense.on_epoch_end()
        assert figures["passes_per_sample"] >= 3 - 1e-6
        assert all(math.isfinite(v) for v in figures.values()), figures
    file = io.BytesIO()
    torch.save(
        {
            "network": problem.network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "defense": defense.state_dict(),
        },
        file,
    )
    return problem.network.state_dict(), file.getvalue()


@every_case
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(key: str, kind: str) -> None:
    epochs = list(batches(4))
    whole, _ = train(key, kind, epochs)
    _, saved = train(key, kind, epochs[:2])
    resumed, _ = train(key, kind, epochs[2:], saved)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@every_case
def test_the_network_is_left_as_found(key: str, kind: str) -> None:
    problem = toy(kind, key)
    problem.network.eval()
    next(problem.network.children()).train(False)
    frozen_parameter = next(problem.network.parameters())
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    defense.on_epoch_start(0, 4)
    frozen_parameter.requires_grad_(False)
    modes = {name: m.training for name, m in problem.network.named_modules()}
    buffers = {name: b.clone() for name, b in problem.network.named_buffers()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in problem.network.modules()]
    stream = torch.get_rng_state()
    images = problem.images.clone()
    for part in defense.losses(problem.network, problem.batch(FIRST)):
        assert {name: m.training for name, m in problem.network.named_modules()} == modes
        assert not frozen_parameter.requires_grad
        part.loss.backward()
    assert frozen_parameter.grad is None
    assert {name: m.training for name, m in problem.network.named_modules()} == modes
    assert all(torch.equal(b, buffers[name]) for name, b in problem.network.named_buffers())
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in problem.network.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(problem.images, images)
    assert not problem.images.requires_grad


@every_case
def test_gradients_of_micro_batches_add_up(key: str, kind: str) -> None:
    def gradients(parts_of: list[torch.Tensor], together: bool) -> list[torch.Tensor]:
        problem = toy(kind, key)
        problem.network.eval()  # BatchNorm would remember the order
        defense, optimizer = problem.defense(key), optimizer_of(problem.network)
        defense.attach(problem.network, optimizer)
        defense.on_epoch_start(0, 4)
        total = [torch.zeros_like(p) for p in problem.network.parameters()]
        for ids in parts_of:
            for part in defense.losses(problem.network, problem.batch(ids)):
                if part.update:
                    pytest.skip("several weight updates per batch: nothing to accumulate")
                part.loss.backward()
            if not together:
                for t, p in zip(total, problem.network.parameters(), strict=True):
                    t += torch.zeros_like(p) if p.grad is None else p.grad
                problem.network.zero_grad()
        return [p.grad for p in problem.network.parameters()] if together else total

    micro = [torch.arange(3), torch.arange(3, 6)]
    for one, two in zip(gradients(micro, True), gradients(micro, False), strict=True):
        torch.testing.assert_close(one if one is not None else torch.zeros_like(two), two)


@every_case
def test_double_and_half_precision(key: str, kind: str) -> None:
    def losses(dtype: torch.dtype, autocast: bool) -> list[torch.Tensor]:
        problem = toy(kind, key, dtype)
        defense, optimizer = problem.defense(key), optimizer_of(problem.network)
        defense.attach(problem.network, optimizer)
        defense.on_epoch_start(0, 4)
        found = []
        parts = defense.losses(problem.network, problem.batch(FIRST))
        while True:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                part = next(parts, None)
            if part is None:
                break
            part.loss.backward()
            found.append(part.loss.detach())
        gradients = [p.grad for p in problem.network.parameters() if p.grad is not None]
        assert gradients
        assert all(bool(g.isfinite().all()) for g in gradients)
        return found

    double, half = losses(torch.float64, False), losses(torch.float32, True)
    assert {loss.dtype for loss in double} == {torch.float64}
    assert {loss.dtype for loss in half} == {torch.float32}
    for one, two in zip(double, half, strict=True):  # random starts differ between the dtypes, the problem does not
        torch.testing.assert_close(one.float(), two, rtol=0.25, atol=0.1)


@every_case
def test_every_forward_is_booked(key: str, kind: str) -> None:
    problem = toy(kind, key)
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    defense.on_epoch_start(0, 4)
    seen: list[int] = []
    for network in (problem.network, getattr(defense, "teacher", None)):
        if network is not None:
            network.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    for part in defense.losses(problem.network, problem.batch(FIRST)):
        part.loss.backward()
    assert defense.statistics.passes.forward == sum(seen)
    assert defense.statistics.samples == BATCH


@every_case
def test_one_sample_alone(key: str, kind: str) -> None:
    """A last batch of one: nothing is squeezed, and BatchNorm in eval mode has no say."""
    problem = toy(kind, key)
    problem.network.eval()
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    losses = step(defense, problem.network, optimizer, problem.batch(torch.tensor([3])))
    assert all(math.isfinite(value) for value in losses)


@every_case
def test_radius_zero_attacks_nothing(key: str, kind: str) -> None:
    problem = toy(kind, key)
    off = {"delta": 0} if key == "ima" else {}
    defense, optimizer = problem.defense(key, eps=0, **off), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    step(defense, problem.network, optimizer, problem.batch(FIRST))
    if METHODS[key].family != "gradient":  # regularisers of the gradient need it for its own sake
        assert defense.statistics.passes.backward_input == 0


@with_memory
def test_only_the_memory_of_visited_samples_changes(key: str, kind: str) -> None:
    problem = toy(kind, key)
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    defense.on_epoch_start(0, 4)
    step(defense, problem.network, optimizer, problem.batch(torch.arange(SAMPLES)))  # memory made at the first batch
    before = {name: state.values.clone() for name, state in defense.states.items()}
    visited = torch.tensor([7, 2, 9])
    step(defense, problem.network, optimizer, problem.batch(visited))
    others = torch.tensor([i for i in range(SAMPLES) if i not in visited.tolist()])
    assert before
    assert all(torch.equal(before[name][others], s.values[others]) for name, s in defense.states.items())


@with_memory
def test_ids_are_asked_for(key: str, kind: str) -> None:
    problem = toy(kind, key)
    batch = problem.batch(FIRST)
    with pytest.raises(InputError, match="ids: received None, allowed is"):
        problem.defense(key)(problem.network, batch.images, batch.target)


@with_memory
def test_memory_of_other_samples_is_refused(key: str, kind: str) -> None:
    problem = toy(kind, key)
    defense, optimizer = problem.defense(key), optimizer_of(problem.network)
    defense.attach(problem.network, optimizer)
    step(defense, problem.network, optimizer, problem.batch(FIRST))
    saved = defense.state_dict()
    for name in defense.states:
        saved[name]["groups"] = {"train": SAMPLES + 1}
    with pytest.raises(InputError, match="other samples"):
        problem.defense(key).load_state_dict(saved)


# ------------------------------------------------------------------ two processes

OF_SLICES = [key for key, kind in CASES if kind == "segmentation 2D"]
ONE_RANK = "no foreground on the other rank"


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    found = {}
    for key, kind in [*CASES, *((key, ONE_RANK) for key in OF_SLICES)]:
        problem = toy("segmentation 2D" if kind == ONE_RANK else kind, key)
        if kind == ONE_RANK and rank == 1:
            for labels in problem.target:
                labels.zero_()
        network = DistributedDataParallel(problem.network)
        defense, optimizer = problem.defense(key), optimizer_of(network)
        try:
            defense.attach(network, optimizer)
            for epoch, ids_of_batches in batches(2):
                defense.on_epoch_start(epoch, 4)
                for ids in ids_of_batches:
                    step(defense, network, optimizer, problem.batch(ids[rank * 3 : rank * 3 + 3]))
                figures = defense.on_epoch_end()
        except Exception as error:  # the other ranks wait: end them all, and say why
            torch.save({(key, kind): f"{type(error).__name__}: {error}"}, Path(folder) / f"{rank}.pt")
            raise
        parameters = [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]
        memory = [state.values.clone() for state in defense.states.values()]
        found[key, kind] = (parameters, memory, figures)
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[Any, Any]]:
    """Every case trained by the same two processes: starting them takes longer than the trainings."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=2, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


@every_case
def test_two_ranks_stay_together(ranks: list[dict[Any, Any]], key: str, kind: str) -> None:
    (weights, memory, figures), (other_weights, other_memory, other_figures) = (r[key, kind] for r in ranks)
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(memory, other_memory, strict=True))
    assert figures == other_figures


@pytest.mark.parametrize("key", OF_SLICES)
def test_two_ranks_stay_together_where_one_has_nothing_to_attack(ranks: list[dict[Any, Any]], key: str) -> None:
    test_two_ranks_stay_together(ranks, key, ONE_RANK)
    figures = ranks[0][key, ONE_RANK][2]
    assert figures.get("attacked", 0) <= 0.5


# ------------------------------------------------------------------ registry


def test_names_are_unique_and_told_apart_without_case() -> None:
    assert len({m.name.lower() for m in METHODS.values()}) == len(METHODS)
    assert all(key == m.key for key, m in METHODS.items())


@pytest.mark.parametrize("key", METHODS)
def test_presets_are_valid(key: str) -> None:
    method = METHODS[key]
    task_settings = {"dice", "threshold", "threshold_included", "empty_target", "attack_loss", "absent_classes",
                     "attack_deep_supervision", "training_loss", "lr_schedule", "amp"}  # fmt: skip
    for name, values in method.presets.items():
        own = {k: v for k, v in values.items() if k not in task_settings}
        settings = method.settings(**own)
        assert all(getattr(settings, k) == v for k, v in own.items()), name


@pytest.mark.parametrize("key", METHODS)
def test_presets_for_images_between_0_and_1_say_so(key: str) -> None:
    """Others are of z-scored scans (the IMA paper's volumes), of points in the plane, or of code that cuts nothing."""
    unbounded = ("_heart", "_hippocampus", "_prostate", "_two_moons", "fgsm_sdi_cifar", "paper", "official", "finetune")
    for name, preset in METHODS[key].presets.items():
        assert preset.get("box") == (None if name.endswith(unbounded) else (0.0, 1.0)), name


@pytest.mark.parametrize("key", METHODS)
def test_settings_of_another_method_are_refused(key: str) -> None:
    class Other(nn.Module):
        pass

    with pytest.raises(InputError, match="settings: received"):
        METHODS[key].defense(toy("2 classes", key).task, Other())  # type: ignore[arg-type]


def test_a_method_without_ids_accepts_a_batch_without() -> None:
    problem = toy("2 classes", "sat")
    batch = problem.batch(FIRST)
    assert [p.update for p in problem.defense("sat").losses(problem.network, Batch(batch.images, batch.target))] == [
        False
    ]
