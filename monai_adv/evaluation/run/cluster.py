"""Dask: a cluster on this machine that nobody else can use, or the scheduler of an institute.

Whoever may talk to a Dask scheduler or worker may run any code as its user, and every user of a machine may connect to
its loopback ports. So all of them speak TLS with a key and a certificate that are made for one run, and refuse whoever
does not show them; they listen on 127.0.0.1 only, and none of Dask's HTTP servers is started.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Any

import dask
import distributed
from distributed.security import Security

from monai_adv import openmp
from monai_adv.errors import InputError
from monai_adv.foreign_text import say

HERE = "127.0.0.1"


class _WithoutHTTP:
    """Dask has settings for what its HTTP servers show, but none to leave them out."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """None."""


class Scheduler(_WithoutHTTP, distributed.Scheduler):
    """Of a local cluster."""


class Worker(_WithoutHTTP, distributed.Worker):
    """Of a local cluster; a process of its own finds it here."""


def connect(address: str, certificates: Mapping[str, str] | None = None) -> distributed.Client:
    """A client of a scheduler that runs already.

    Args:
        address: ``tls://HOST:PORT``; ``tcp://`` without certificates, where whoever reaches the port may run code.
        certificates: files, by the names of :class:`distributed.Security`; None: those of Dask's own configuration.

    Raises:
        InputError: certificates for a connection that would not use them.
        OSError, ValueError: the scheduler does not answer, or refuses the certificates.
    """
    scheme, host = address.split("://") if "://" in address else ("tls" if certificates else "tcp", address)
    if certificates and scheme != "tls":
        raise InputError.of("dask", address, "an address that begins with tls:// where certificates are given")
    if scheme == "tcp":
        note = (
            "neither encrypted nor authenticated: whoever reaches its ports can run code on it; see docs/measuring.md"
        )
        say(f"Dask: {address} is {note}", sys.stderr)
    security = Security(require_encryption=True, **certificates) if certificates else None  # type: ignore[no-untyped-call]
    return distributed.Client(f"{scheme}://{host}", timeout="20s", security=security)  # type: ignore[no-untyped-call]


def local_cluster(workers: int) -> distributed.SpecCluster:
    """Start processes with one thread each.

    Raises:
        ImportError: the package cryptography is missing, which makes the certificate.
    """
    security = Security.temporary()  # type: ignore[no-untyped-call]
    everywhere = {"host": HERE, "protocol": "tls://", "security": security, "dashboard": False}
    nanny = {
        **everywhere,
        "worker_class": Worker,
        "nthreads": 1,
        "memory_limit": 0,
        "silence_logs": logging.ERROR,  # how it stops its own workers is no news
    }
    with dask.config.set({"distributed.nanny.pre-spawn-environ": openmp.PASSIVE}):
        return distributed.SpecCluster(  # type: ignore[no-untyped-call]
            scheduler={"cls": Scheduler, "options": {**everywhere, "port": 0}},
            workers={i: {"cls": distributed.Nanny, "options": nanny} for i in range(workers)},
            security=security,
            silence_logs=logging.ERROR,
        )
