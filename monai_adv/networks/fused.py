"""A copy of a network whose BatchNorm is folded into its convolutions: the same function but for the last digits."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node, Tracer
from torch.nn.utils.fusion import fuse_conv_bn_eval

from monai_adv.errors import InputError, in_a_sentence
from monai_adv.network_state import bare, device_of, frozen, is_compiled

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
SAME = 1e-4
"""How much of the largest output the copy may be off."""


def fused(network: nn.Module, images: Tensor) -> nn.Module:
    """A copy that computes what the network does in eval mode, but for the last digits, and sooner.

    In eval mode BatchNorm is one factor and one shift per channel, which a convolution right before it takes over. On a
    CPU and for 2-D images the copy also works in ``channels_last`` memory layout, where its code takes it. Convolutions
    that something else reads as well, that carry hooks or a parametrization, and layers that cannot be traced stay as
    they are; so does the code of the network, which the copy runs. The copy is for eval mode only. On one CPU core a
    forward and its input gradient of a small ResNet take 0.55 to 0.7 of the network's time.

    Source: Markus, "Fusing batch normalization and convolution in runtime", 2018; the arithmetic is PyTorch's
    ``fuse_conv_bn_eval``.

    Args:
        network: any module, also in DDP; it is left as it was.
        images: ``(B, C, *spatial)`` that it takes, on which both are compared.

    Returns:
        the copy, in eval mode, on the device of the network; its parameters need no gradient.

    Raises:
        InputError: a network without a BatchNorm that can be folded, one that cannot be copied, a compiled one, or a
            copy that answers otherwise on these images by more than :data:`SAME`.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        >>> fused(network, torch.rand(2, 1, 8, 8))
        Sequential(
          (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(1, 1))
          (1): Identity()
          (2): ReLU()
        )
    """
    if is_compiled(network):
        raise InputError.of("fuse", "a compiled network", "one before torch.compile", "give that, or leave it out")
    try:
        copied = copy.deepcopy(bare(network)).eval().requires_grad_(False)
    except Exception as error:  # of whatever the network holds
        raise _refused(f"a network that cannot be copied ({in_a_sentence(error).rstrip('.')})") from error
    if not _fold(copied):
        raise _refused("no BatchNorm right after a convolution", "a network with one")
    images = images.to(device_of(network))
    expected = _outputs(network, images)
    if images.device.type == "cpu" and images.ndim == 4:
        try:
            return _checked(copied.to(memory_format=torch.channels_last), images, expected)
        except InputError:
            raise
        except Exception:  # .view() of its own features, as a rule: then in the layout that it is written for
            copied.to(memory_format=torch.contiguous_format)
    try:
        return _checked(copied, images, expected)
    except InputError:
        raise
    except Exception as error:  # code that wants to see its BatchNorm
        raise _refused(f"a network that fails without its BatchNorm ({in_a_sentence(error).rstrip('.')})") from error


def _refused(received: str, allowed: str = "one whose BatchNorm can be folded") -> InputError:
    return InputError.of("fuse", received, allowed, "leave it out")


def _outputs(network: nn.Module, images: Tensor) -> list[Tensor]:
    """In eval mode; deep supervision gives several."""
    cudnn = torch.backends.cudnn  # TF32, which a GPU uses by default, rounds more coarsely than SAME
    exact = cudnn.flags(enabled=cudnn.enabled, deterministic=True, allow_tf32=False)
    with exact, frozen(network) as model, torch.no_grad():
        output = model(images)
    return [output] if isinstance(output, Tensor) else list(output)


def _checked(copied: nn.Module, images: Tensor, expected: list[Tensor]) -> nn.Module:
    for found, wanted in zip(_outputs(copied, images), expected, strict=True):
        largest = wanted.nan_to_num(0, 0, 0).abs().amax()
        if not torch.allclose(found, wanted, rtol=0, atol=SAME * float(largest), equal_nan=True):
            share = float((found - wanted).abs().amax() / largest)
            raise _refused(
                f"a network whose copy is off by {share:.2g} of its largest output", f"{SAME:g}, a matter of rounding"
            )
    return copied


def _fold(module: nn.Module) -> int:
    """Fold whatever can be, in place; where the whole cannot be traced, in its parts.

    Only pairs of layers are replaced: what was traced is never run, so that what tracing cannot see stays.

    Returns:
        how many layers were folded.
    """
    if not any(isinstance(layer, NORMS) for layer in module.modules()):
        return 0
    try:
        graph = _Layers().trace(copy.deepcopy(module))  # its code may keep what it sees there
    except Exception:  # control flow that depends on the images, lists of layers without a forward, ...
        return sum(map(_fold, module.children()))
    before, after = defaultdict[str, set[object]](set), defaultdict[str, set[object]](set)
    for node in graph.nodes:
        if node.op == "call_module":
            before[node.target] |= {_layer(other) for other in node.all_input_nodes}
            after[node.target] |= {_layer(other) for other in node.users}
    pairs = [(conv, next(iter(users))) for conv, users in after.items() if len(users) == 1]
    folded = 0
    for conv, norm in pairs:
        # A layer that is called several times is folded only if every call of the one belongs to one of the other.
        if isinstance(norm, str) and before[norm] == {conv}:
            first, second = module.get_submodule(conv), module.get_submodule(norm)
            if _foldable(first, second):
                merged: Any = fuse_conv_bn_eval
                _replace(module, first, merged(first, second, type(first) in TRANSPOSED).requires_grad_(False))
                _replace(module, second, nn.Identity().eval())
                folded += 1
    return folded


class _Layers(Tracer):
    """Looks only into what holds layers to be folded: a pooling of one's own needs no trace."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is one node of the graph."""
        if super().is_leaf_module(m, module_qualified_name):
            return True
        return not any(isinstance(layer, CONVOLUTIONS + TRANSPOSED + NORMS) for layer in m.modules())


def _layer(node: Node) -> object:
    """The name of the layer that a node calls; of all else the node itself."""
    return node.target if node.op == "call_module" else node


def _foldable(conv: Any, norm: Any) -> bool:
    # Exact types: a class of one's own, which a parametrization is too, may compute something else.
    transposed = type(conv) in TRANSPOSED and conv.groups == 1
    if not (transposed or type(conv) in CONVOLUTIONS) or type(norm) not in NORMS:
        return False
    if conv.training or norm.training or norm.running_mean is None or norm.running_var is None:
        return False
    return not any(getattr(layer, hooks) for layer in (conv, norm) for hooks in HOOKS)


def _replace(module: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Under all names that it has in there."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new
