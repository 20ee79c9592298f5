"""SimCLR: a network learns, without labels, to tell which two views belong to one image.

Source: Chen et al., A simple framework for contrastive learning of visual representations (ICML 2020), equation 1 and
algorithm 1. The temperature and the size of the projection are those of its section 5; the optimiser is Adam.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.data.dataloader import DataLoader
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, RandomSampler

from monai_adv.errors import InputError
from monai_adv.files import whole_file
from monai_adv.network_state import device_of, unwrap_ddp
from monai_adv.networks.dual_batch_norm import DualNorm, branch_state_dict
from monai_adv.pretraining.views import Images, TwoViewDataset, TwoViews, ViewSettings
from monai_adv.progress_bar import tqdm
from monai_adv.settings import Settings, differences, not_negative, positive, setting

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class SimCLRSettings(Settings):
    """Settings of :func:`pretrain`."""

    epochs: int = setting(100, "passes over the images", "a whole number > 0", positive)
    batch_size: int = setting(
        64, "images per step and process; each has two views", "a whole number >= 2", lambda v: v > 1
    )
    lr: float = setting(1e-3, "learning rate of Adam at the start; it falls to 0 as a cosine", "a number > 0", positive)
    weight_decay: float = setting(1e-6, "weight decay of Adam", "a number >= 0", not_negative)
    temperature: float = setting(
        0.1, "divides the cosines; small values look at the nearest views", "a number > 0", positive
    )
    projection: int = setting(128, "size of the vectors that are compared", "a whole number > 0", positive)
    seed: int = setting(0, "of the order of images and of their views", "a whole number >= 0", not_negative)
    workers: int = setting(0, "processes that make views", "a whole number >= 0", not_negative)


class GatherWithGradient(torch.autograd.Function):
    """The rows of all ranks; the gradient that any rank has for a row comes back to the rank that gave it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        everything = rows.new_empty(dist.get_world_size(), *rows.shape)
        dist.all_gather(list(everything.unbind()), rows.contiguous())
        return everything.flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1) -> Tensor:
    """The normalised temperature-scaled cross entropy.

    For each of the 2N views: minus the logarithm of the share that the other view of the same image has among all
    other views, by ``exp(cosine / temperature)``; the mean over the 2N. Under ``torch.distributed`` the views of all
    ranks are compared, with gradient, and every rank returns the mean over its own: the mean over the ranks, and the
    gradient that DDP averages, are those of one process with the whole batch. Ranks need batches of one size.

    Args:
        first, second: ``(N, features)``; row i of both belongs to image i. Any length: they are normalised.
        temperature: > 0.

    Returns:
        a scalar, float32 or finer.

    Raises:
        InputError: shapes that differ, a single image (nothing to tell it from), a temperature that is not > 0.

    Example:
        >>> same = torch.ones(4, 3)
        >>> torch.isclose(nt_xent(same, same), torch.tensor(7.0).log())  # 7 others, all alike
        tensor(True)
    """
    if first.dim() != 2 or first.shape != second.shape:
        received = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise InputError.of("first and second", received, "two views (images, features) of the same images")
    if not (math.isfinite(temperature) and temperature > 0):
        raise InputError.of("temperature", temperature, "a finite number > 0")
    mine = F.normalize(torch.cat([first, second]).to(torch.promote_types(first.dtype, torch.float32)), dim=1)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    everything = GatherWithGradient.apply(mine) if several else mine
    count = len(first)
    if len(everything) < 4:
        raise InputError.of("first", f"{count} image", "at least two images", "use a larger batch and drop the last")
    start = dist.get_rank() * len(mine) if several else 0
    own = torch.arange(len(mine), device=mine.device)
    similarity = mine @ everything.T / temperature
    similarity = similarity.index_put((own, start + own), similarity.new_tensor(-math.inf))
    return F.cross_entropy(similarity, start + (own + count) % len(mine))


class SimCLR(nn.Module):
    """A copy of a network without its head, and two layers that project its features.

    Args:
        network: a classification network whose head is a linear layer.
        projection: size of the projections.
        head: name of the head, such as ``"fc"``; None: the linear layer that was registered last.

    Raises:
        InputError: there is no such layer.
    """

    def __init__(self, network: nn.Module, projection: int = 128, head: str | None = None) -> None:
        super().__init__()
        self.head = head_of(network, head)
        features = int(network.get_submodule(self.head).in_features)  # type: ignore[arg-type]
        self.encoder = copy.deepcopy(network)
        self.encoder.set_submodule(self.head, nn.Identity())
        self.projector = nn.Sequential(
            nn.Linear(features, features), nn.ReLU(inplace=True), nn.Linear(features, projection)
        )
        self.projector.to(device_of(network))

    def forward(self, images: Tensor) -> Tensor:
        """Projections ``(N, projection)`` of images ``(N, C, *size)``."""
        projections: Tensor = self.projector(self.encoder(images))
        return projections


def head_of(network: nn.Module, head: str | None = None) -> str:
    """The name of a network's last linear layer, or ``head`` if that is one."""
    linear = [name for name, layer in network.named_modules() if name and isinstance(layer, nn.Linear)]
    if not linear or (head is not None and head not in linear):
        allowed = f"the name of a linear layer, one of {linear[-5:]}" if linear else "a network with a linear layer"
        received = type(network).__name__ if head is None else head
        raise InputError.of("network" if head is None else "head", received, allowed, "give a classification network")
    return linear[-1] if head is None else head


def pretrain(
    network: nn.Module,
    images: Images,
    file: str | Path,
    settings: SimCLRSettings | None = None,
    views: ViewSettings | None = None,
    head: str | None = None,
) -> list[float]:
    """Train a copy of a network's encoder with SimCLR; :func:`load_pretrained` reads the result.

    ``file`` is written after every epoch. If it is there already, training goes on where it ended; on the CPU and
    without dropout the result is then the same as without the interruption. Under ``torch.distributed`` every rank
    calls this; rank 0 writes.

    Args:
        network: see :class:`SimCLR`; it is not changed. Training runs on its device.
        images: images ``(C, *size)`` of one size, or pairs that start with one: a list, or a dataset. No labels needed.
        file: where the weights go.
        settings, views: what differs from the defaults.
        head: see :class:`SimCLR`.

    Returns:
        the mean loss of every epoch.

    Raises:
        InputError: too few images, a file of a run with other settings or of another network.
        RuntimeError: the loss is not finite.

    Example::

        pretrain(drop_max_resnet18(), images, "simclr.pt")
        network = load_pretrained(drop_max_resnet18(), "simclr.pt")
    """
    settings = SimCLRSettings() if settings is None else settings
    views = ViewSettings() if views is None else views
    file = Path(file)
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    if len(images) // ranks < settings.batch_size:
        todo = "lower batch_size or give more images"
        raise InputError.of(
            "images", len(images), f"at least {settings.batch_size * ranks}, one batch per process", todo
        )
    device = device_of(network)
    model = SimCLR(network, settings.projection, head)
    optimiser = torch.optim.Adam(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
    losses = resume(model, optimiser, file, settings, views)
    wrapped: nn.Module = model
    if several:
        wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    two_views = TwoViews(views)
    dataset = TwoViewDataset(images, two_views)
    order = torch.Generator()
    spread: DistributedSampler[Any] | None = DistributedSampler(dataset, seed=settings.seed) if several else None
    loader = DataLoader(
        dataset,
        batch_size=settings.batch_size,
        sampler=RandomSampler(dataset, generator=order) if spread is None else spread,
        num_workers=settings.workers,
        drop_last=True,
        generator=order,
    )
    for epoch in tqdm(range(len(losses), settings.epochs), desc="SimCLR", disable=rank > 0):
        # The state of an epoch follows from its number, so that a resumed run repeats it.
        seed = (settings.seed * settings.epochs + epoch) * ranks + rank
        order.manual_seed(seed)
        two_views.set_random_state(seed % 2**32)
        if spread is not None:
            spread.set_epoch(epoch)
        total = torch.zeros((), device=device)
        wrapped.train()
        for step, (first, second) in enumerate(loader):
            share = (epoch + step / len(loader)) / settings.epochs
            optimiser.param_groups[0]["lr"] = settings.lr * (1 + math.cos(math.pi * share)) / 2
            optimiser.zero_grad()
            projections = wrapped(torch.cat([first, second]).to(device))
            ours, others = projections.chunk(2)
            loss = nt_xent(ours, others, settings.temperature)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            total += loss.detach()
        if several:
            dist.all_reduce(total)
        losses.append(total.item() / len(loader) / ranks)
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"The SimCLR loss of epoch {epoch} is {losses[-1]}: lower lr or look at the images.")
        if rank == 0:
            save(model, optimiser, file, settings, views, losses)
    if several:
        dist.barrier()
    return losses


def description(settings: SimCLRSettings, views: ViewSettings) -> dict[str, Any]:
    """What a resumed run must share; another machine may have other workers."""
    return {name: value for name, value in {**asdict(settings), **asdict(views)}.items() if name != "workers"}


def save(
    model: SimCLR,
    optimiser: torch.optim.Optimizer,
    file: Path,
    settings: SimCLRSettings,
    views: ViewSettings,
    losses: list[float],
) -> None:
    """Write the run; a crash leaves the file of the epoch before."""
    contents = {
        "encoder": model.encoder.state_dict(),
        "projector": model.projector.state_dict(),
        "optimiser": optimiser.state_dict(),
        "losses": losses,
        "settings": description(settings, views),
    }
    with whole_file(file) as whole:
        torch.save(contents, whole)


def resume(
    model: SimCLR, optimiser: torch.optim.Optimizer, file: Path, settings: SimCLRSettings, views: ViewSettings
) -> list[float]:
    """Go on with the run in the file, if there is one; returns its losses."""
    if not file.exists():
        return []
    saved = read(file)
    if "projector" not in saved:
        raise InputError.of("file", str(file), "a file that pretrain wrote, or a new one", "choose another name")
    changed = differences(saved["settings"], description(settings, views))
    if changed:
        todo = f"choose another file, or go back to its settings ({'; '.join(changed)})"
        raise InputError.of("file", str(file), "a file of a run with the same settings", todo)
    check_fit(model.encoder.state_dict(), saved["encoder"], file, model.encoder)
    model.encoder.load_state_dict(saved["encoder"])
    model.projector.load_state_dict(saved["projector"])
    optimiser.load_state_dict(saved["optimiser"])
    losses: list[float] = saved["losses"]
    return losses


def load_pretrained(network: Network, file: str | Path, head: str | None = None) -> Network:
    """Load the weights of an encoder into a network; its head stays as it is.

    Args:
        network: as the one that was pre-trained; the number of classes may differ. Converted by
            :func:`~monai_adv.networks.dual_batch_norm`, both branches are filled.
        file: from :func:`pretrain`, or a state dict, such as ImageNet weights.
        head: name of the head; None: the linear layer that was registered last.

    Returns:
        the network.

    Raises:
        InputError: the file cannot be read, or its weights are those of another network.
    """
    file = Path(file)
    saved = read(file)
    weights = saved.get("encoder", saved.get("state_dict", saved))
    plain = unwrap_ddp(network)
    own_head = head_of(plain, head) + "."
    dual = any(isinstance(layer, DualNorm) for layer in plain.modules())
    state = branch_state_dict(plain, "clean") if dual else plain.state_dict()
    wanted = {key: value for key, value in state.items() if not key.startswith(own_head)}
    found = {key: value for key, value in weights.items() if not key.startswith(own_head)}
    check_fit(wanted, found, file, plain)
    kept = {key: value for key, value in state.items() if key.startswith(own_head)}
    plain.load_state_dict({**found, **kept})
    return network


def read(file: Path) -> dict[str, Any]:
    """What a file holds: tensors and plain values only, nothing that could run."""
    try:
        contents = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError.of("file", str(file), "an existing file", "check the path") from None
    except Exception as error:  # torch raises many kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError.of("file", str(file), "a file written by torch.save", f"reading it says: {reason}") from None
    if not isinstance(contents, dict):
        raise InputError.of("file", str(file), "a file with a state dict", f"it holds a {type(contents).__name__}")
    return contents


def check_fit(wanted: dict[str, Tensor], found: dict[str, Any], file: Path, network: nn.Module) -> None:
    """Refuse weights of another network, and say how they differ."""
    # Old checkpoints have no count of batches, and nothing is computed from it.
    missing = [k for k in wanted if k not in found and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in found if k not in wanted]
    shapes = [
        f"{k} {tuple(getattr(found[k], 'shape', ()))} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and getattr(found[k], "shape", ()) != v.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    words = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    ]
    if words:
        todo = f"of {len(wanted)} entries {' and '.join(words)}; build it as the pre-trained network was"
        raise InputError.of("file", str(file), f"the weights of the encoder of this {type(network).__name__}", todo)
