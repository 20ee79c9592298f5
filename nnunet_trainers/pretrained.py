"""``nnUNetv2_train -pretrained_weights``: read without running code, and into doubled norm layers as well."""

from __future__ import annotations

from typing import Any

from nnunetv2.run import run_training as host
from torch import Tensor, nn

from monai_adv.errors import InputError
from monai_adv.network_state import bare
from monai_adv.networks.dual_batch_norm import branch_state_dict, converted
from nnunet_trainers.checkpoint import read_any

load_by_host = host.load_pretrained_weights


def watch(network: nn.Module) -> None:
    """From now on, nnU-Net loads pretrained weights into this network by :func:`load`; other networks as ever."""

    def load_pretrained_weights(into: Any, filename: str, verbose: bool = False) -> None:
        (load if into is network else load_by_host)(into, filename, verbose)

    # The command has no hook between making the network and loading; it looks this name up when it loads.
    host.load_pretrained_weights = load_pretrained_weights


def load(network: nn.Module, filename: str, verbose: bool = False) -> None:
    """All weights but the output layers, as nnU-Net does it.

    Raises:
        InputError: the file cannot be read safely, or belongs to another architecture.
    """
    weights = read_any(filename)["network_weights"]
    into: Any = network
    if converted(network) and not set(bare(network).state_dict()) <= set(weights):
        into = _OneBranch(network)
    try:
        load_by_host(into, filename, verbose)
    except (AssertionError, RuntimeError) as error:
        raise InputError.of(
            "-pretrained_weights", filename, "a checkpoint of the same architecture",
            f"nnU-Net says: {' '.join(str(error).split())[:160]}",
        ) from None  # fmt: skip


class _OneBranch:
    """A network with two branches as nnU-Net's function sees it: with one, whose values both get."""

    def __init__(self, network: nn.Module) -> None:
        self._network = bare(network)

    def state_dict(self) -> dict[str, Tensor]:
        return branch_state_dict(self._network, "clean")

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        self._network.load_state_dict(weights)
