"""The host's network, from trainers of its releases old and new."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def built(
    build: Callable[..., nn.Module],
    plans: Any,
    configuration: Any,
    in_channels: int,
    out_channels: int,
    deep_supervision: bool,
) -> nn.Module:
    """What ``build_network_architecture`` makes.

    Args:
        build: the method, of nnU-Net or of one of its variants.
        plans, configuration: nnU-Net's managers.
        in_channels, out_channels: of the network.
        deep_supervision: whether it answers at several resolutions.
    """
    if "plans_manager" in inspect.signature(build).parameters:
        return build(plans, configuration, in_channels, out_channels, deep_supervision)
    return build(  # a variant with the signature of older releases, which the host still accepts
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        in_channels,
        out_channels,
        deep_supervision,
    )
