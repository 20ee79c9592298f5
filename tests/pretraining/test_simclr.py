"""SimCLR: the loss by hand, two processes as one, views that respect their image, and weights that arrive."""

from __future__ import annotations

import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from monai_adv.errors import InputError
from monai_adv.networks import branch_state_dict, drop_max_resnet18, dual_batch_norm
from monai_adv.pretraining import (
    SimCLR,
    SimCLRSettings,
    TwoViewDataset,
    TwoViews,
    ViewSettings,
    load_pretrained,
    nt_xent,
    pretrain,
    simclr,
)

OFF = ViewSettings(crop=1.0, flip=0.0, intensity=0.0, blur=0.0, noise=0.0)


def tiny(classes: int = 2, width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(1, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    return nn.Sequential(body, nn.Linear(width, classes))


def images(count: int = 8, size: int = 10) -> Tensor:
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_identical_embeddings(count: int, temperature: float) -> None:
    same = torch.randn(1, 6, dtype=torch.float64).expand(count, 6)
    assert nt_xent(same, 3 * same, temperature).item() == pytest.approx(math.log(2 * count - 1))


def test_the_loss_by_hand() -> None:
    # Image 0 is seen as (1, 0) twice, image 1 as (0, 1) and (1, 0).
    first = torch.tensor([[2.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0], [3.0, 0.0]], dtype=torch.float64)
    e = math.exp(1 / 0.5)
    # Per view: the cosine to its partner, and the exponentials of the cosines to the three others.
    expected = [-2 + math.log(e + 1 + e), math.log(1 + 1 + 1), -2 + math.log(e + 1 + e), math.log(e + 1 + e)]
    assert nt_xent(first, second, 0.5).item() == pytest.approx(sum(expected) / 4)


def test_a_view_is_not_compared_with_itself() -> None:
    # Opposite pairs: were the view itself among the others, its cosine of 1 would be the largest.
    first = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    assert nt_xent(first, -first, 1.0).item() == pytest.approx(1 + math.log(math.exp(-1) + 2))


@examples(max_examples=20)
@given(st.integers(0, 1000), st.integers(2, 6))
def test_the_order_of_views_and_images_and_their_lengths_do_not_matter(seed: int, count: int) -> None:
    torch.manual_seed(seed)
    first, second = torch.randn(2, count, 5, dtype=torch.float64)
    loss = nt_xent(first, second)
    order = torch.randperm(count)
    torch.testing.assert_close(nt_xent(second, first), loss)
    torch.testing.assert_close(nt_xent(first[order], second[order]), loss)
    torch.testing.assert_close(nt_xent(first * torch.rand(count, 1).add(0.1), second), loss)
    assert nt_xent(first, first, 1e-3) < 1e-6


def test_gradient_and_half_precision() -> None:
    torch.manual_seed(0)
    views = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: nt_xent(v[0], v[1], 0.5), views)
    half = views.detach().bfloat16()
    assert torch.equal(nt_xent(half[0], half[1]), nt_xent(half[0].float(), half[1].float()))


def ddp_worker(rank: int, port: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    network, first, second = ddp_problem()
    mine = slice(rank * 3, rank * 3 + 3)
    wrapped = DistributedDataParallel(network)
    loss = nt_xent(*wrapped(torch.cat([first[mine], second[mine]])).chunk(2), 0.3)
    loss.backward()
    losses = pretrain(tiny(), images(), f"{folder}/run.pt", SimCLRSettings(epochs=2, batch_size=2, projection=4))
    torch.save((loss.detach(), [p.grad for p in network.parameters()], losses), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def ddp_problem() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    first, second = torch.randn(2, 6, 5, dtype=torch.float64)
    return network, first, second


def test_two_processes_are_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(ddp_worker, args=(port, str(tmp_path)), nprocs=2, join=True)
    (loss, grads, losses), (other_loss, other_grads, other_losses) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)
    )
    network, first, second = ddp_problem()
    alone = nt_xent(*network(torch.cat([first, second])).chunk(2), 0.3)
    alone.backward()
    torch.testing.assert_close((loss + other_loss) / 2, alone.detach())
    for parameter, grad, other in zip(network.parameters(), grads, other_grads, strict=True):
        assert torch.equal(grad, other)
        torch.testing.assert_close(grad, parameter.grad)
    assert losses == other_losses
    assert len(losses) == 2
    load_pretrained(tiny(), tmp_path / "run.pt")


@pytest.mark.parametrize("shape", [(1, 16, 12), (2, 8, 9, 10)])
@pytest.mark.parametrize(("scale", "offset"), [(1.0, 0.0), (200.0, -50.0)])
def test_views_keep_shape_and_range_and_know_no_unit(shape: tuple[int, ...], scale: float, offset: float) -> None:
    unit = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    views = TwoViews()
    first, second = views.set_random_state(0)(unit)
    assert first.shape == second.shape == unit.shape
    assert not torch.equal(first, second)
    assert not torch.equal(first, unit)
    assert unit.min() <= first.min()
    assert first.max() <= unit.max()
    assert type(first) is Tensor
    again = views.set_random_state(0)(unit * scale + offset)[0]
    torch.testing.assert_close((again - offset) / scale, first, atol=1e-4, rtol=1e-4)


def test_each_change_is_what_it_says() -> None:
    image = torch.rand(1, 16, 16)
    for state in range(5):
        flipped = TwoViews(ViewSettings(crop=1.0, flip=1.0, intensity=0.0, blur=0.0, noise=0.0)).set_random_state(state)
        view = flipped(image)[0]
        assert any(torch.allclose(view, image.flip(axis), atol=1e-6) for axis in (1, 2))
    noisy = TwoViews(ViewSettings(crop=1.0, flip=0.0, intensity=0.0, blur=0.0, noise=1.0, keep_range=False))
    added = torch.stack([noisy(image)[0] - image for _ in range(30)])
    # MONAI draws the standard deviation between 0 and the given one.
    assert 0 < added.std().item() < 0.1 * image.std().item()
    assert torch.allclose(TwoViews(OFF)(image)[0], image, atol=1e-6)
    flat = torch.full((1, 8, 8), 0.3)
    assert torch.equal(TwoViews()(flat)[0], flat)


def test_a_dataset_takes_lists_pairs_and_arrays() -> None:
    image = images(1)[0]
    for item in (image, image.numpy(), (image, 1), MetaTensor(image)):
        first, _ = TwoViewDataset([item], TwoViews(OFF))[0]
        torch.testing.assert_close(first, image)


def test_the_encoder_is_the_network_without_its_head() -> None:
    network = tiny()
    model = SimCLR(network, projection=3)
    x = images()
    assert model.head == "1"
    assert torch.equal(model.encoder.eval()(x), network.eval()[0](x))
    assert model(x).shape == (8, 3)
    assert isinstance(network[1], nn.Linear)
    model.encoder[0][0].weight.data.zero_()
    assert network[0][0].weight.any()


def test_training_brings_views_together_and_leaves_the_network_alone(tmp_path: Path) -> None:
    network = tiny(width=8)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    file = tmp_path / "new" / "run.pt"
    views = ViewSettings(crop=1.0, flip=0.0, intensity=0.0, blur=0.0, noise_std=0.01)
    losses = pretrain(network, images(8), file, SimCLRSettings(epochs=30, batch_size=8, lr=0.01), views)
    # At chance the loss is log(15): 15 other views.
    assert losses[-1] < 0.6 * losses[0]
    assert losses[-1] < 0.5 * math.log(15)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [path.name for path in file.parent.iterdir()] == ["run.pt"]


def test_a_resumed_run_is_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SimCLRSettings(epochs=4, batch_size=4, projection=8)
    whole = pretrain(tiny(), images(), tmp_path / "whole.pt", settings)
    save = simclr.save

    def save_and_stop(*args: Any) -> None:
        save(*args)
        if len(args[-1]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(simclr, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain(tiny(), images(), tmp_path / "cut.pt", settings)
    monkeypatch.undo()
    other = tiny()
    other[0][0].weight.data.zero_()  # the file decides, not the network
    assert pretrain(other, images(), tmp_path / "cut.pt", settings) == whole
    first, second = (load_pretrained(tiny(), tmp_path / f"{name}.pt") for name in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert pretrain(tiny(), images(), tmp_path / "cut.pt", settings) == whole
    with pytest.raises(InputError, match="lr: 0.001 in the checkpoint, 0.1 now"):
        pretrain(tiny(), images(), tmp_path / "cut.pt", SimCLRSettings(epochs=4, batch_size=4, projection=8, lr=0.1))


def test_weights_arrive_in_a_drop_max_resnet(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = drop_max_resnet18(num_classes=7)
    settings = SimCLRSettings(epochs=1, batch_size=2, projection=4)
    pretrain(source, images(2, 40), tmp_path / "run.pt", settings)
    torch.manual_seed(1)
    target = drop_max_resnet18(num_classes=2)
    head = target.fc.weight.clone()
    assert load_pretrained(target, tmp_path / "run.pt") is target
    saved = torch.load(tmp_path / "run.pt", weights_only=True)["encoder"]
    state = target.state_dict()
    assert {key for key in state if key not in saved} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(state[key], value) for key, value in saved.items())
    assert torch.equal(target.fc.weight, head)
    # Also into both branches, and from a plain state dict with a head of another size.
    dual = load_pretrained(dual_batch_norm(drop_max_resnet18()), tmp_path / "run.pt")
    assert torch.equal(branch_state_dict(dual, "noisy")["bn1.running_mean"], saved["bn1.running_mean"])
    torch.save(source.state_dict(), tmp_path / "plain.pt")
    assert torch.equal(load_pretrained(target, tmp_path / "plain.pt").conv1.weight, source.conv1.weight)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(tiny(width=5).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(
        InputError, match=r"of 7 entries 6 of another shape \(0\.0\.weight \(5, 1, 3, 3\) instead of \(4,"
    ):
        load_pretrained(tiny(), tmp_path / "wide.pt")
    state = tiny().state_dict()
    state["0.9.weight"] = state.pop("0.0.weight")
    torch.save(state, tmp_path / "named.pt")
    with pytest.raises(InputError, match=r"1 missing \(0\.0\.weight\) and 1 unexpected \(0\.9\.weight\)"):
        load_pretrained(tiny(), tmp_path / "named.pt")
    with pytest.raises(InputError, match="an existing file"):
        load_pretrained(tiny(), tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("weights")
    with pytest.raises(InputError, match="written by torch.save"):
        load_pretrained(tiny(), tmp_path / "text.pt")
    with pytest.raises(InputError, match="a file that pretrain wrote"):
        pretrain(tiny(), images(), tmp_path / "named.pt", SimCLRSettings(epochs=1, batch_size=2))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nt_xent(torch.ones(2, 3), torch.ones(2, 3), 0.0), "temperature: received 0.0"),
        (lambda: nt_xent(torch.ones(2, 3), torch.ones(2, 3), math.nan), "temperature: received nan"),
        (lambda: nt_xent(torch.ones(1, 3), torch.ones(1, 3)), "at least two images"),
        (lambda: nt_xent(torch.ones(2, 3), torch.ones(3, 3)), "(2, 3) and (3, 3)"),
        (lambda: SimCLRSettings(temperature=-1.0), "temperature: received -1.0"),
        (lambda: SimCLRSettings(batch_size=1), "batch_size: received 1"),
        (lambda: ViewSettings(crop=0.0), "crop: received 0.0"),
        (lambda: SimCLR(nn.Sequential(nn.Conv2d(1, 1, 1))), "a network with a linear layer"),
        (lambda: SimCLR(tiny(), head="fc"), "head: received 'fc'"),
        (lambda: pretrain(tiny(), images(3), "never.pt"), "images: received 3"),
        (lambda: TwoViews()(torch.ones(4, 4)), "image: received 'shape (4, 4)'"),
        (lambda: TwoViews()(np.full((1, 4, 4), np.nan)), "a finite image"),
        (lambda: TwoViewDataset([{"image": images(1)[0]}], TwoViews())[0], "images[0]: received 'dict'"),
    ],
)
def test_bad_input_is_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    network = tiny()
    network[0][0].weight.data.fill_(math.nan)
    with pytest.raises(RuntimeError, match="SimCLR loss of epoch 0"):
        pretrain(network, images(), tmp_path / "run.pt", SimCLRSettings(epochs=1, batch_size=4))
    assert not (tmp_path / "run.pt").exists()
