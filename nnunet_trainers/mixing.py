"""Robust trainers mixed with nnU-Net's variants, ``class MyTrainer(IMATrainer, nnUNetTrainerBN)``, in either order.

nnU-Net's variants override whole methods without calling the one below (``load_checkpoint`` of ``nnUNetTrainer_warmup``
would lose the margins, ``build_network_architecture`` of ``nnUNetTrainerBN`` what the method does to the network). They
are made to stand on ``nnUNetTrainer`` itself. So that is where they stand here: below the robust trainer, whatever the
order in which they were named.
"""

from __future__ import annotations

from typing import Any

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class Mixing(type):
    """Class of the robust trainers.

    Example::

        class MyTrainer(nnUNetTrainer_warmup, IMATrainer): ...

        MyTrainer.mro()  # MyTrainer, IMATrainer, RobustTrainer, nnUNetTrainer_warmup, nnUNetTrainer, object
    """

    def mro(cls) -> list[type]:
        """Python's order, with nnU-Net's own trainers and what they are made of moved below the robust ones."""
        order = super().mro()
        hosts = [c for c in order if not isinstance(c, Mixing) and issubclass(c, nnUNetTrainer)]
        below = [c for c in order if any(issubclass(host, c) for host in hosts)]
        return [c for c in order if c not in below] + below

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        """A trainer on which the settings that were given count, whatever constructors of subclasses have set."""
        trainer = super().__call__(*args, **kwargs)
        trainer.settings_count()
        return trainer


def defining(trainer: type, name: str) -> list[type]:
    """The classes that a trainer is made of, itself among them, that define the method ``name``, but for nnU-Net's."""
    return [c for c in trainer.__mro__ if name in vars(c) and c is not nnUNetTrainer]
