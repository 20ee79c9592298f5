"""How the threads of a process wait for each other.

By default OpenMP's threads spin while they wait. On a machine that has other work to do, or few cores, they then take
the time of those that compute: steps become many times slower.
"""

from __future__ import annotations

import os

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
"""For the environment of a process that is about to start."""


def wait_passively() -> None:
    """Set ``PASSIVE`` for this process where the user has not decided; has an effect only before torch is imported."""
    for name, value in PASSIVE.items():
        os.environ.setdefault(name, value)
