"""Every method of the registry as an nnU-Net trainer."""

from __future__ import annotations

import copy
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from monai_adv import InputError
from monai_adv.defenses import METHODS
from nnunet_trainers import trainers
from tests.nnunet_host import datasets, host, same, started, weights  # noqa: F401  (fixtures)

ABLE = [m.trainer for m in METHODS.values() if "segmentation" not in m.not_for]
UNABLE = [m.trainer for m in METHODS.values() if "segmentation" in m.not_for]


def trainer_class(name: str) -> Any:
    return getattr(trainers, name)


def test_there_is_a_trainer_for_every_method() -> None:
    assert sorted(trainers.__all__) == sorted(m.trainer for m in METHODS.values())


@pytest.mark.parametrize("name", trainers.__all__)
def test_trainers_can_be_pickled_and_say_what_they_do(name: str) -> None:
    cls = trainer_class(name)
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert cls.__name__ == name
    assert cls.method.idea in cls.__doc__


@pytest.mark.parametrize("name", UNABLE)
def test_methods_without_a_meaning_for_segmentation_refuse_and_say_why(host: Any, name: str) -> None:
    with pytest.raises(InputError, match=trainer_class(name).method.not_for["segmentation"]):
        host(trainer_class(name))


@pytest.mark.parametrize("name", ABLE)
def test_a_checkpoint_goes_on_as_if_nothing_had_happened(host: Any, tmp_path: Path, name: str) -> None:
    def epoch(trainer: Any, batches: list[Any]) -> list[float]:
        trainer.on_train_epoch_start()
        outputs = [trainer.train_step(copy.deepcopy(batch)) for batch in batches]
        trainer.on_train_epoch_end(outputs)
        trainer.current_epoch += 1
        return [float(o["loss"]) for o in outputs]

    first = started(host(trainer_class(name), threshold=0.05))
    batches = [next(first.dataloader_train) for _ in range(4)]
    epoch(first, batches[:2])
    file = str(tmp_path / "saved.pth")
    first.current_epoch -= 1  # save_checkpoint counts on
    first.save_checkpoint(file)
    first.current_epoch += 1
    second = host(trainer_class(name), threshold=0.05)
    second.load_checkpoint(file)
    started(second)
    assert same(weights(first), weights(second))
    one, two = epoch(first, batches[2:]), epoch(second, batches[2:])
    assert all(math.isfinite(loss) for loss in one)
    assert one == two
    assert same(weights(first), weights(second))
    for key, state in first.defense.states.items():
        assert torch.equal(state.values, second.defense.states[key].values)
