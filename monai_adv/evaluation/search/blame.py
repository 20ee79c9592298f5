"""Who is to blame where an attack fails: one of ours, the user's own plan, or the case."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from monai_adv.errors import AttackError, InputError, in_a_sentence, is_of_ours
from monai_adv.evaluation.plans import Plan
from monai_adv.evaluation.search.plan import NOISE


class FaultyAttack(RuntimeError):
    """An attack broke its own rules: no figure of this evaluation can be trusted, so nothing goes on."""


@dataclass(frozen=True)
class Blame:
    """Of the attacks on one case.

    Args:
        case: its name.
        attacks: the setting: a plan of the user's own, or the name of one of ours.
        networks: those that the attacks call, asked when one has failed: a fused copy is made on the way.
    """

    case: str
    attacks: Plan | str
    networks: Callable[[], Sequence[nn.Module]]

    @contextmanager
    def during(self, attack: str) -> Iterator[None]:
        """An attack that fails is no fault of the case, unless that is too large or its network fails.

        In a plan of the user's own a network may fail because of what the attack hands it; white noise, which comes
        first, has shown that it takes this case.

        Raises:
            FaultyAttack: one of ours.
            AttackError: one of a plan of the user's own.
        """
        try:
            yield
        except (AttackError, FaultyAttack, MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if self._own_plan(attack) is not None:
                self.refuse(attack, [in_a_sentence(error, given=True).rstrip(".")], error)
            if not isinstance(error, InputError) and is_of_ours(error) and not self._in_network(error):
                self.refuse(attack, [in_a_sentence(error).rstrip(".")], error)
            raise

    def refuse(self, attack: str, faults: Sequence[str], error: Exception | None = None) -> None:
        """Go no further with an attack that breaks its contract; nothing happens without a fault.

        Raises:
            FaultyAttack: one of ours.
            AttackError: one of a plan of the user's own.
        """
        if not faults:
            return
        if (plan := self._own_plan(attack)) is not None:
            said = f"attacks: {attack!r} of the plan {plan.name}, on {self.case}: {'; '.join(faults)}."
            raise AttackError(said) from error
        raise FaultyAttack(f"{attack} on {self.case}: {'; '.join(faults)}. Please report this.") from error

    def _own_plan(self, attack: str) -> Plan | None:
        """The plan of the user's own that an attack is of."""
        return self.attacks if isinstance(self.attacks, Plan) and attack != NOISE else None

    def _in_network(self, error: Exception) -> bool:
        """Whether it was raised within a call of the network: those of this package are networks as well."""
        parts = {id(part) for network in self.networks() for part in network.modules()}
        return any(id(frame.f_locals.get("self")) in parts for frame, _ in traceback.walk_tb(error.__traceback__))
