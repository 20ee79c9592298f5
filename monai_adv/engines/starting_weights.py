"""Which weights a fine-tuning of a bundle starts from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from monai.handlers.checkpoint_loader import CheckpointLoader
from monai.handlers.checkpoint_saver import CheckpointSaver
from torch import nn

from monai_adv.engines.robust_state import RobustState, threat_in
from monai_adv.engines.run_settings import PLAIN
from monai_adv.errors import InputError
from monai_adv.network_state import bare
from monai_adv.weights import load_weights

PUBLISHED = "model.pt"
"""How bundles call the weights of their network."""


def attached(engine: Engine) -> list[Any]:
    """The handlers of an engine, each once, but those behind a filter of events: ignite keeps only methods."""
    owners = (getattr(h, "__self__", h) for handlers in engine._event_handlers.values() for h, *_ in handlers)
    return list({id(owner): owner for owner in owners}.values())


def start_from(given: str, network: nn.Module, handlers: Sequence[Any]) -> str:
    """Load what the setting ``initial_weights`` names, or leave it to the bundle's CheckpointLoader.

    Args:
        given: a file, or :data:`PLAIN`.
        network: gets the weights.
        handlers: of the trainer and of what validates it; they name files.

    Returns:
        what it starts from, for the log.

    Raises:
        InputError: there is no such file or none to be found, several to choose from, one that does not fit, one that a
            defence has trained already (:data:`PLAIN`), or one that this run would overwrite.
    """
    loaders = [h for h in handlers if isinstance(h, CheckpointLoader) and _loads_weights_alone(h, network)]
    if loaders and given != PLAIN:
        raise InputError.of(
            "initial_weights", given, f"none beside a CheckpointLoader of {loaders[0].load_path}, which loads later",
            "say one of the two; a loader that resumes a training has its RobustState in load_dict",
        )  # fmt: skip
    if len(loaders) > 1:
        raise _several([loader.load_path for loader in loaders])
    written = set(_written(handlers))
    if loaders:
        file = Path(loaders[0].load_path)
    else:
        file = find_plain(handlers, written) if given == PLAIN else Path(given)
    if file.resolve() in written:
        raise InputError.of(
            "initial_weights", str(file), "a file that this run does not write",
            "its CheckpointSaver would replace the plain weights: give it a folder of its own (mostly --ckpt_dir)",
        )  # fmt: skip
    if loaders:
        return f"{file}, which the bundle's CheckpointLoader names"
    load_weights(bare(network), file, "initial_weights")
    return str(file)


def find_plain(handlers: Sequence[Any], written: set[Path]) -> Path:
    """The one ``model.pt`` near the bundle's checkpoints that this run does not write and no defence has trained.

    Raises:
        InputError: there is none, or several.
    """
    folders = [Path(saver.save_dir) for saver in handlers if isinstance(saver, CheckpointSaver)]
    places = [f / PUBLISHED for folder in folders for f in (folder, folder.parent, folder.parent / "models")]
    found = {p.resolve(): p for p in [*places, Path("models") / PUBLISHED] if p.is_file()}
    free = {real: shown for real, shown in found.items() if real not in written}
    plain = [shown for real, shown in free.items() if threat_in(real) is None]
    if len(plain) > 1:
        raise _several(plain)
    if plain:
        return plain[0]
    if free:
        why = f"{next(iter(free.values()))} was trained by a defence already"
    elif found:
        why = (
            f"{next(iter(found.values()))} would be replaced by this run's CheckpointSaver: give it a folder of its "
            "own (mostly --ckpt_dir)"
        )
    else:
        looked = sorted({str(p.parent) for p in places} or {"models"})
        why = f"there is no {PUBLISHED} in {', '.join(looked)}: train the bundle as it is first"
    raise InputError.of("initial_weights", PLAIN, f"a {PUBLISHED} of a plain training", f"{why}, or name a file")


def _several(files: Sequence[Any]) -> InputError:
    return InputError.of(
        "initial_weights", PLAIN, "one file", "there are several; name one of " + ", ".join(map(str, files))
    )


def _loads_weights_alone(loader: CheckpointLoader, network: nn.Module) -> bool:
    parts = list(loader.load_dict.values())
    ours = any(isinstance(part, nn.Module) and bare(part) is bare(network) for part in parts)
    return ours and not any(isinstance(part, RobustState) for part in parts)


def _written(handlers: Sequence[Any]) -> Iterator[Path]:
    """The files of fixed names that the savers write."""
    for saver in handlers:
        if isinstance(saver, CheckpointSaver):
            for checkpoint in (saver._key_metric_checkpoint, saver._final_checkpoint):
                name = getattr(getattr(checkpoint, "save_handler", None), "filename", None)
                if name is not None:
                    yield (Path(saver.save_dir) / name).resolve()
