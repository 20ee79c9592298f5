"""The state of a defence (margins, moving averages, random stream) in MONAI's checkpoints, or in a file of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from logging import Logger
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_adv.defenses.base import Defense
from monai_adv.errors import InputError
from monai_adv.files import whole_file
from monai_adv.network_state import device_of, unwrap_ddp
from monai_adv.settings import differences
from monai_adv.statistics import wide_dtype

if TYPE_CHECKING:
    from monai_adv.engines.run import Run

STATE = "robust_state.pt"
"""How the docs call the file of a state."""


class RobustState:
    """What MONAI's CheckpointSaver and CheckpointLoader save and load, before and after the defence exists.

    Make it an item of the config, give it to the trainer as ``state`` and to the handlers in their ``save_dict`` and
    ``load_dict``. Under ``torch.distributed`` every rank has the same state, so saving on one rank waits for nobody.

    Args:
        file: for bundles whose handlers shall stay as they are: the trainer writes the state there after each epoch,
            and reads it when a training starts with exactly the weights that the network had then.

    Example:
        >>> state = RobustState()
        >>> state.load_state_dict({"method": "IMA", "settings": {}, "defense": {}})  # waits for the trainer
        >>> state.state_dict()["method"]
        'IMA'
    """

    def __init__(self, file: str | Path | None = None) -> None:
        self.file = None if file is None else Path(file)
        self._written: list[str] = []  # fingerprints of the weights after each epoch
        self._defense: Defense | None = None
        self._method = ""
        self._settings: dict[str, Any] = {}
        self._waiting: dict[str, Any] | None = None
        self._logger: Logger | None = None
        self._goes_on = False
        self._run: Run | None = None

    @classmethod
    def of(cls, given: RobustState | str | Path | None) -> RobustState:
        """The state that the trainer's argument ``state`` means."""
        return given if isinstance(given, RobustState) else cls(given)

    def surround(self, run: Run) -> None:
        """Called by the trainer before the defence is ready: the number of the epoch must not wait for that."""
        self._run = run
        self._restore_run(self._waiting or {})

    def connect(self, defense: Defense, method: str, settings: Mapping[str, Any], logger: Logger) -> None:
        """Called by the trainer once the defence is ready; what was loaded before goes into it now."""
        self._defense, self._method, self._settings, self._logger = defense, method, dict(settings), logger
        if self._waiting is not None:
            self.load_state_dict(self._waiting)
            self._waiting = None

    def disconnect(self) -> None:
        """Called by the trainer before it makes another defence; what was loaded waits for that one."""
        if self._goes_on and self._defense is not None:
            self._waiting = self.state_dict()
        self._defense = None

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, strings and numbers: loads with ``weights_only=True``."""
        if self._defense is None:
            return dict(self._waiting or {})
        return {
            "method": self._method,
            "settings": self._settings,
            "threat": self._defense.trained_against(),
            "defense": self._defense.state_dict(),
            "run": None if self._run is None else self._run.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore bit for bit.

        Raises:
            InputError: the state of another method, of other samples, in another unit or within another budget; nothing
                is changed then.
        """
        if not _is_state(saved):
            raise InputError.of("state", sorted(map(str, saved)), "what a RobustState saved", "see the load_dict")
        self._goes_on = True
        if self._defense is None:
            self._waiting = dict(saved)
            self._restore_run(saved)
            return
        if saved["method"] != self._method:
            raise InputError.of(
                "state", f"that of {saved['method']}", f"that of {self._method}", "train on with the same trainer"
            )
        if self._run is not None:
            self._run.check_budget(saved["settings"], self._settings)
        self._defense.load_state_dict(saved["defense"])
        self._restore_run(saved)
        changed = differences(saved["settings"], self._settings)
        if changed and self._logger is not None:
            self._logger.info("Settings that differ from the checkpoint:\n  " + "\n  ".join(changed))

    def _restore_run(self, saved: Mapping[str, Any]) -> None:
        if self._run is not None and saved.get("run") is not None:
            self._run.load_state_dict(saved["run"])

    def write(self, network: nn.Module, epoch: int) -> None:
        """Write the file, so that a crash never costs the previous one."""
        self._goes_on = True
        if self.file is None:
            return
        self._written.append(_fingerprint(unwrap_ddp(network).state_dict()))
        with whole_file(self.file) as file:
            torch.save({"weights": self._written, "epoch": epoch, "state": self.state_dict()}, file)

    def resume(self, network: nn.Module, logger: Logger) -> None:
        """Read the file if it belongs to these weights: bundles seldom restore the trainer's epoch.

        Raises:
            InputError: the file cannot be read.
        """
        if self.file is None or not self.file.is_file():
            return
        try:
            saved = torch.load(self.file, map_location="cpu", weights_only=True)
            weights, epoch, state = list(saved["weights"]), saved["epoch"], saved["state"]
        except Exception as error:  # torch and pickle raise a dozen kinds
            raise InputError.of(
                "state", str(self.file), "a file written by a trainer of monai_adv.engines",
                f"move it away ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            ) from error  # fmt: skip
        if weights[-1:] == [_fingerprint(unwrap_ddp(network).state_dict())]:
            logger.info(f"Resuming with the state of epoch {epoch} from {self.file}.")
            self.load_state_dict(state)
            self._written = weights
        elif self._goes_on:
            logger.info(
                f"{self.file} belongs to other weights, those after its epoch {epoch}, and will be overwritten: the "
                "state goes on as it is, from a checkpoint or from the epochs before."
            )
        else:
            logger.warning(
                f"{self.file} belongs to other weights, those after its epoch {epoch}: this training starts with a new "
                "state and will overwrite it. To resume from any checkpoint, put a RobustState into its save_dict."
            )


def threat_in(file: Path) -> dict[str, Any] | None:
    """What a network was trained against.

    Args:
        file: its weights. Beside a state they are a checkpoint that says it; alone, the file ``robust_state.pt`` in the
            same folder says it, if these are the weights after one of its epochs.

    Returns:
        see :meth:`~monai_adv.defenses.base.Defense.trained_against`; None if nothing says it.
    """
    content = _content(file)
    parts = [part for part in (content, *content.values()) if isinstance(part, dict)]
    states = [part for part in parts if _is_state(part)]
    if not states:
        beside = _content(file.with_name(STATE))
        known = beside.get("weights", ())
        weights = (part for part in parts if any(isinstance(value, Tensor) for value in part.values()))
        if _is_state(beside.get("state")) and any(_fingerprint(part) in known for part in weights):
            states = [beside["state"]]
    found: dict[str, Any] | None = states[0].get("threat") if states else None
    return found


def _content(file: Path) -> dict[str, Any]:
    """Of a file of torch; nothing of any other."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # of whatever the file is: it is only asked
        return {}
    return content if isinstance(content, dict) else {}


def _is_state(part: Any) -> bool:
    """Whether it is what a RobustState saved."""
    return isinstance(part, Mapping) and {"method", "settings", "defense"} <= set(part)


@torch.no_grad()
def check_ranks(network: nn.Module) -> None:
    """A checkpoint that only one rank has loaded: DDP does not notice, and would average unrelated gradients.

    Raises:
        InputError: the ranks have different weights.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    device = device_of(network)
    norms = torch.stack([p.detach().to(wide_dtype(device)).norm() for p in network.parameters()])
    lowest, highest = norms.clone(), norms.clone()
    dist.all_reduce(lowest, dist.ReduceOp.MIN)
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    if not torch.equal(lowest, highest):
        raise InputError.of(
            "network", "weights that differ between the ranks", "the same weights on every rank",
            "load checkpoints on every rank: the Model Zoo's multi_gpu_train.json leaves out the last handlers on "
            "all ranks but the first, so load in `initialize` (docs/existing_bundle.md)",
        )  # fmt: skip


def _fingerprint(weights: Mapping[str, Any]) -> str:
    """SHA-256 of all weights and buffers of a state dict, the same on every device."""
    digest = hashlib.sha256()
    for value in weights.values():
        if isinstance(value, Tensor):  # some modules keep something else beside their tensors
            digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
