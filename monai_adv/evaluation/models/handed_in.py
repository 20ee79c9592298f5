"""The models that a user hands in from Python: networks in memory, folders of bundles and nnU-Nets, one or several."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from monai_adv.errors import InputError
from monai_adv.evaluation.models.hosts import FolderHost, Options, load_hosts
from monai_adv.evaluation.models.memory import collect, model_of
from monai_adv.evaluation.models.plain import usable_device
from monai_adv.evaluation.models.protocol import LiveSource, Source, check_distinct
from monai_adv.given import Box
from monai_adv.network_state import device_of


@dataclass(frozen=True)
class HandedIn:
    """Models by name, and where they compute; see :meth:`of`."""

    named: Mapping[str, object]
    device: str

    @classmethod
    def of(cls, model: object, name: str | None, device: str | None) -> HandedIn:
        """Sort out one model, a list, or a dictionary with names.

        Raises:
            InputError: a name for several, or an empty one; networks on several kinds of device, or a device that is
                not theirs.
        """
        if isinstance(model, Mapping):
            named = {str(k): v for k, v in model.items()}
        else:
            named = _named(model) if isinstance(model, list | tuple) else {}
        if not named:
            if name is not None:
                check_distinct("name", [name])
            named = {_name(model) if name is None else name: model}
        elif name is not None:
            raise InputError.of("name", name, "given for one model only", "give a dictionary of names and models")
        networks = [m for m in named.values() if isinstance(m, nn.Module)]
        return cls(named, _device(device, networks, len(named)))

    @contextmanager
    def sources(
        self,
        images: Any,
        labels: Any,
        box: Box | None = None,
        classes: Sequence[str] | None = None,
        regions: bool | None = None,
        spacing: Sequence[float] | None = None,
        options: Options | None = None,
    ) -> Iterator[list[Source]]:
        """What the evaluation opens; networks are in eval mode meanwhile, and as they were afterwards.

        Args:
            images, labels, box, classes, regions, spacing, options: see :func:`monai_adv.evaluate`.

        Raises:
            InputError: a model, images or labels that cannot be used.
        """
        networks = [m for m in self.named.values() if isinstance(m, nn.Module)]
        with _as_they_were(networks):
            data = collect(images, labels) if networks and not isinstance(images, str | Path) else None
            sources: list[Source] = []
            for own, each in self.named.items():
                if not isinstance(each, nn.Module):
                    sources.append(_source(each, images, labels, self.device, box, own, options or {}))
                elif options:
                    raise InputError.of("options", sorted(options), "nothing for a network: they are for folders")
                elif data is None:
                    raise InputError.of("images", str(images), "tensors, a DataLoader or a data set for a network")
                else:
                    sources.append(LiveSource(model_of(each, data, own, classes, box, regions, spacing)))
            yield sources


def _name(model: object) -> str:
    return Path(model).resolve().name if isinstance(model, str | Path) else type(model).__name__


def _named(models: Iterable[object]) -> dict[str, object]:
    """By class or folder; of several of one name the later ones are counted."""
    found: dict[str, object] = {}
    for model in models:
        name, count = _name(model), 1
        while (own := name if count == 1 else f"{name} {count}") in found:
            count += 1
        found[own] = model
    return found


def _device(asked: str | None, networks: Sequence[nn.Module], count: int) -> str:
    if not networks:
        found = ("cuda" if torch.cuda.is_available() else "cpu") if asked is None else _written(asked)
        usable_device(found)
        return found
    there = {str(device_of(network)) for network in networks}
    if len({word.split(":")[0] for word in there}) > 1:
        raise InputError.of("model", f"networks on {' and '.join(sorted(there))}", "networks on one kind of device")
    wanted = None if asked is None else _written(asked)
    if wanted is not None and len(networks) == count and {wanted} != there:
        raise InputError.of("device", asked, f"the network's own, {there.pop()}", "move it first, model.to(device)")
    return sorted(there)[0] if len(networks) == count else wanted or sorted(there)[0]


def _written(device: Any) -> str:
    """As torch writes it."""
    try:
        return str(torch.device(device))
    except (RuntimeError, TypeError):
        raise InputError.of("device", device, "a device of PyTorch's, such as 'cpu', 'cuda' or 'cuda:1'") from None


def _source(
    model: object, images: Any, labels: Any, device: str, box: Box | None, name: str, options: Options
) -> Source:
    """The model in a folder, from the host that knows it."""
    allowed = "a torch.nn.Module, or the folder of a MONAI bundle or of a trained nnU-Net"
    if not isinstance(model, str | Path):
        raise InputError.of("model", type(model).__name__, allowed)
    place = Path(model).resolve()
    if not place.is_dir():
        raise InputError.of("model", str(model), allowed, "there is no such folder")
    hosts, broken = load_hosts()
    for host in hosts.values():
        if isinstance(host, FolderHost):
            found = host.source_at(place, images, labels, device=device, box=box, name=name, options=options)
            if found is not None:
                return found
    todo = "; ".join(f"{host} cannot be imported ({reason})" for host, reason in broken.items())
    raise InputError.of("model", str(model), allowed, todo or "a bundle has configs, an nnU-Net plans.json in it")


@contextmanager
def _as_they_were(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Networks go into eval mode; a training that goes on afterwards finds its own."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
