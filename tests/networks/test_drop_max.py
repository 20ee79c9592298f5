"""Drop-max pooling against a plain top-2 of every window, in values, gradients and all that a stem may hold."""

from __future__ import annotations

import copy
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from monai.data.meta_tensor import MetaTensor
from monai.networks.nets.densenet import DenseNet121
from monai.networks.nets.resnet import resnet10
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.networks import DropMaxPool1d, DropMaxPool2d, DropMaxPool3d, polyphase, replace_first_max_pool, vgg16
from monai_adv.networks.drop_max import plain_drop_max
from monai_adv.networks.polyphase import Axis

OURS: dict[int, Any] = {1: DropMaxPool1d, 2: DropMaxPool2d, 3: DropMaxPool3d}
THEIRS: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def reference(x: Tensor, out: tuple[int, ...], layer: Any) -> Tensor:
    """Window by window: sort what is not padding, take the second, first place in raster order first."""
    n = len(out)
    windows = []
    for place in itertools.product(*map(range, out)):
        elements = []
        for tap in itertools.product(*map(range, layer.kernel_size)):
            at = [
                p * s - pad + t * d
                for p, s, pad, t, d in zip(place, layer.stride, layer.padding, tap, layer.dilation, strict=True)
            ]
            if all(0 <= i < size for i, size in zip(at, x.shape[-n:], strict=True)):
                elements.append(x[(..., *at)])
        window = torch.stack(elements, -1)
        ranked = window.detach().sort(-1, descending=True).values
        second = ranked[..., min(1, window.shape[-1] - 1), None]
        first_place = (window.detach() == second).to(torch.uint8).argmax(-1, keepdim=True)
        windows.append(window.gather(-1, first_place)[..., 0])
    return torch.stack(windows, -1).view(*x.shape[:-n], *out)


def max_pools(layer: nn.Module, x: Tensor) -> bool:
    """Whether max-pooling finds windows here, each with an element."""
    try:
        return not layer(x.nan_to_num(neginf=-9)).isinf().any()
    except RuntimeError:
        return False


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, Tensor]:
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel = draw(each.filter(lambda k: max(k) > 1))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    dilation = draw(st.tuples(*[st.integers(1, 2)] * dims))
    settings = {"stride": draw(each), "padding": padding, "dilation": dilation, "ceil_mode": draw(st.booleans())}
    size = draw(st.tuples(*[st.integers(1, 7)] * dims))
    torch.manual_seed(draw(st.integers(0, 99)))
    x = torch.randn(2, 2, *size, dtype=torch.float64)
    kind = draw(st.sampled_from(["any", "ties", "relu", "infinite"]))
    if kind == "ties":
        x = x.round()
    elif kind == "relu":
        x = x.relu()
    elif kind == "infinite":
        x = torch.where(x < 0, -torch.inf, x)
    return (kernel, settings), x


@examples(max_examples=120)
@given(cases(), st.sampled_from([1, 40, 65536]))
def test_equals_the_reference(case: tuple[Any, Tensor], chunk: int) -> None:
    (kernel, settings), x = case
    dims = len(kernel)
    layer = OURS[dims](kernel, **settings)
    x.requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        # Chunks of any size, down to a row, are the same.
        patch.setattr(polyphase, "CPU_CHUNK", {})
        patch.setattr(polyphase, "CPU_CHUNK_PER_THREAD", chunk)
        try:
            mine = layer(x)
        except InputError:  # where max-pooling finds no window, or a window without an element
            assert not max_pools(THEIRS[dims](kernel, **settings), x.detach())
            return
        grad = torch.randn_like(mine)
        (mine_grad,) = torch.autograd.grad(mine, x, grad)
        assert torch.equal(layer(x.detach()), mine)
        if dims > 1:
            last = x.detach().contiguous(memory_format=LAST[dims]).requires_grad_()
            pooled = layer(last)
            assert torch.equal(pooled, mine)
            torch.testing.assert_close(torch.autograd.grad(pooled, last, grad)[0], mine_grad)
    assert mine.shape == THEIRS[dims](kernel, **settings)(x.detach()).shape
    theirs = reference(x, tuple(mine.shape[2:]), layer)
    assert torch.equal(mine, theirs)
    torch.testing.assert_close(mine_grad, torch.autograd.grad(theirs, x, grad)[0])
    plain = plain_drop_max(x, layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.ceil_mode)
    assert torch.equal(plain, mine)
    torch.testing.assert_close(torch.autograd.grad(plain, x, grad)[0], mine_grad)


def test_equal_elements_count_one_by_one_and_the_first_gets_the_gradient() -> None:
    x = torch.tensor([[[5.0, 5.0, 1.0, 0.0], [3.0, 9.0, 3.0, 3.0]]], requires_grad=True)
    y = DropMaxPool1d(4)(x)
    assert y.flatten().tolist() == [5.0, 3.0]
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[[1, 0, 0, 0], [1, 0, 0, 0]]]


def test_overlapping_windows_are_pooled_each_for_itself() -> None:
    # Erasing the largest of every window and pooling again would lose the 7, the largest of the second window.
    x = torch.tensor([[[9.0, 7.0, 8.0, 1.0, 0.0]]])
    assert DropMaxPool1d(3, 2)(x).tolist() == [[[8.0, 1.0]]]
    assert DropMaxPool1d(3, 1)(x).tolist() == [[[8.0, 7.0, 1.0]]]


def test_a_window_with_one_element_gives_it() -> None:
    assert DropMaxPool2d(3, 2, 1)(torch.full((1, 1, 1, 1), 4.0)).item() == 4
    assert DropMaxPool1d(2, 2, ceil_mode=True)(torch.tensor([[[3.0, 2.0, 7.0]]])).tolist() == [[[2.0, 7.0]]]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_nan_stays_visible_and_infinities_are_numbers(value: float) -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4).clone()
    x[0, 0, 1, 1] = value
    x.requires_grad_()
    y = DropMaxPool2d(2)(x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert y[0, 0, 0, 0].isnan() if value != value else y[0, 0, 0, 0] == (4 if value > 0 else 1)
    assert torch.equal(y.flatten()[1:], torch.tensor([6.0, 12.0, 14.0]))
    assert grad.sum() == 4
    plain = plain_drop_max(x.detach(), [2, 2], [2, 2], [0, 0], [1, 1], False)
    torch.testing.assert_close(plain, y.detach(), equal_nan=True)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_first_and_second_derivatives(dims: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 1, *[4 if dims < 3 else 3] * dims, dtype=torch.float64, requires_grad=True)
    layer = OURS[dims](3, 2, 1)
    assert torch.autograd.gradcheck(layer, x)
    # A quadratic before and after, so that the second derivative is not zero.
    assert torch.autograd.gradgradcheck(lambda t: layer(t * t) ** 2, x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_exact(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 9).to(dtype).requires_grad_()
    layer = DropMaxPool2d(3, 2, 1)
    assert layer(x).dtype == dtype
    assert torch.equal(layer(x).float(), layer(x.float()))
    # Every gradient is a small whole number.
    single = x.detach().float().requires_grad_()
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(grad.float(), torch.autograd.grad(layer(single).sum(), single)[0])


def test_layouts_and_kinds_are_kept() -> None:
    layer = DropMaxPool2d(3, 2, 1)
    x = torch.randn(2, 3, 8, 8)
    last = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(last)
    assert y.is_contiguous(memory_format=torch.channels_last)
    y.sum().backward()
    assert last.grad is not None
    assert last.grad.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer(x[0]), layer(x)[0])
    assert torch.equal(layer(x[:, :, ::2]), layer(x[:, :, ::2].clone()))
    assert layer(x[:0]).shape == (0, 3, 4, 4)
    meta = layer(MetaTensor(x, meta={"name": "scan"}))
    assert isinstance(meta, MetaTensor)
    assert meta.meta["name"] == "scan"


def test_no_gradient_is_prepared_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spy(planes: Tensor, axes: tuple[Axis, ...], with_taps: bool) -> tuple[Tensor, Tensor | None]:
        asked.append(with_taps)
        return polyphase.second_largest(planes, axes, with_taps)

    monkeypatch.setattr("monai_adv.networks.drop_max.second_largest", spy)
    x = torch.randn(1, 1, 4, 4, requires_grad=True)
    with torch.no_grad():
        assert not DropMaxPool2d(2)(x).requires_grad
    DropMaxPool2d(2)(x.detach())
    DropMaxPool2d(2)(x)
    assert asked == [False, False, True]


@pytest.mark.parametrize("layer", [DropMaxPool2d(3, 2, 1), DropMaxPool2d(2, ceil_mode=True)])
def test_scripted_traced_and_compiled_networks_compute_the_same(layer: nn.Module) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 7).relu()
    expected, expected_grad = value_and_gradient(layer, x)
    scripted = torch.jit.script(layer)
    traced = torch.jit.trace(layer, x)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    exported = torch.export.export(layer, (x,)).module()
    for other in (scripted, compiled):
        value, grad = value_and_gradient(other, x)
        assert torch.equal(value, expected)
        torch.testing.assert_close(grad, expected_grad)
    assert torch.equal(traced(x), expected)
    assert torch.equal(exported(x), expected)
    # The scripted layer is not bound to a size.
    assert torch.equal(scripted(x[:, :, :5]), layer(x[:, :, :5]))


def value_and_gradient(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = layer(x)
    return y.detach(), torch.autograd.grad((y * torch.arange(y.numel()).view_as(y)).sum(), x)[0]


@pytest.mark.parametrize("layer", [DropMaxPool2d(3, 2, 1), DropMaxPool3d(2)])
def test_onnx_runtime_computes_the_same(layer: nn.Module, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    x = torch.randn(2, 2, *[8] * layer.spatial_dims)  # type: ignore[operator]
    file = str(tmp_path / "layer.onnx")
    torch.onnx.export(layer.eval(), (x,), file, dynamo=True, verbose=False)
    session = runtime.InferenceSession(file)
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert torch.equal(torch.from_numpy(result), layer(x))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DropMaxPool2d(1), "kernel_size: received 1"),
        (lambda: DropMaxPool1d(2, return_indices=True), "return_indices"),
        (lambda: DropMaxPool2d(2, padding=2), "padding: received 2"),
        (lambda: DropMaxPool2d((2, 2, 2)), "kernel_size: received (2, 2, 2)"),
        (lambda: DropMaxPool2d(2, stride=0), "stride: received 0"),
        (lambda: DropMaxPool2d(2.0), "kernel_size: received 2.0"),
        (lambda: DropMaxPool2d(2)(torch.zeros(3, 3)), "images"),
        (lambda: DropMaxPool2d(2)(torch.zeros(1, 1, 4, 4, dtype=torch.long)), "torch.int64"),
        (lambda: DropMaxPool2d(3)(torch.zeros(1, 1, 2, 9)), "images: received (2, 9)"),
        # Taps at -1 and 2 of two elements: torch gives -inf and writes its gradient out of bounds.
        (lambda: DropMaxPool1d(2, padding=1, dilation=3)(torch.zeros(1, 1, 2)), "not padding"),
    ],
)
def test_what_cannot_be_pooled_is_refused(make: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        make()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("network", "place"),
    [
        (lambda: resnet10(spatial_dims=1, n_input_channels=1), "maxpool"),
        (lambda: resnet10(spatial_dims=2, n_input_channels=1), "maxpool"),
        (lambda: resnet10(spatial_dims=3, n_input_channels=1), "maxpool"),
        (lambda: DenseNet121(spatial_dims=2, in_channels=1, out_channels=2), "features.pool0"),
        (lambda: nn.Sequential(nn.Sequential(nn.ReLU(), nn.MaxPool3d(2, ceil_mode=True)), nn.MaxPool3d(2)), "0.1"),
    ],
)
def test_the_first_max_pooling_is_replaced(network: Any, place: str) -> None:
    net = network()
    before = {name: layer for name, layer in net.named_modules() if "MaxPool" in type(layer).__name__}
    keys = list(net.state_dict())
    old = before.pop(place)
    assert replace_first_max_pool(net) is net
    new = net.get_submodule(place)
    assert type(new).__name__ == "Drop" + type(old).__name__
    settings = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    for name, value in settings.items():
        assert getattr(new, name) == (list(value) if isinstance(value, tuple) else [value] * new.spatial_dims)
    assert new.ceil_mode == old.ceil_mode
    assert all(net.get_submodule(name) is layer for name, layer in before.items())
    assert list(net.state_dict()) == keys
    # Once is enough.
    replace_first_max_pool(net)
    assert net.get_submodule(place) is new
    assert str(pickle.loads(pickle.dumps(copy.deepcopy(new)))) == str(new)


def test_vgg_and_a_pooling_alone() -> None:
    with torch.device("meta"):
        vgg = vgg16(1, 2)
    assert isinstance(replace_first_max_pool(vgg).features[4], DropMaxPool2d)
    assert isinstance(vgg.features[9], nn.MaxPool2d)
    assert isinstance(replace_first_max_pool(nn.MaxPool1d(2)), DropMaxPool1d)


def test_networks_without_a_fitting_pooling_are_refused() -> None:
    with pytest.raises(InputError, match="received 'Linear'"):
        replace_first_max_pool(nn.Linear(2, 2))
    with pytest.raises(InputError, match="return_indices of 1"):
        replace_first_max_pool(nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, return_indices=True)))
    # MONAI registers a pooling that this network never calls.
    with pytest.raises(InputError, match="received 'ResNet'"):
        replace_first_max_pool(resnet10(spatial_dims=2, n_input_channels=1, no_max_pool=True))
