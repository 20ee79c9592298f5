"""Words that commands share about who does the work: this process, or the workers of a Dask cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from monai_adv.errors import InputError

if TYPE_CHECKING:
    from monai_adv.evaluation.run.workers import Pool

TLS = {  # in the words of `dask scheduler`
    "tls_ca_file": ("--tls-ca-file", "certificate of the authority that signed those of the cluster (PEM)"),
    "tls_client_cert": ("--tls-cert", "certificate of this client (PEM)"),
    "tls_client_key": ("--tls-key", "its key, if that is a file of its own (PEM)"),
}
"""Names in :class:`distributed.Security` -> options."""


def add_pool(group: argparse._ArgumentGroup) -> None:
    """Add the options of Dask."""
    group.add_argument("--workers", type=int, metavar="N", help="processes of a local Dask cluster (default: no Dask)")
    group.add_argument("--dask", metavar="local|ADDRESS", help="use a local Dask cluster, or that of a scheduler")
    for option, what_it_is in TLS.values():
        group.add_argument(option, metavar="FILE", help=f"with --dask ADDRESS: {what_it_is}")


def pool_of(args: argparse.Namespace) -> Pool:
    """Who does the work; to be closed.

    Raises:
        InputError: options that do not go together, or no such cluster.
    """
    from monai_adv.evaluation.run.workers import Dask, ThisProcess

    if args.dask not in (None, "local") and args.workers is not None:
        raise InputError.of("workers", args.workers, "given for a local cluster only", "the scheduler has its own")
    if args.workers is not None and args.workers < 1:
        raise InputError.of("workers", args.workers, "a whole number >= 1")
    wants_dask = args.dask or (args.workers or 1) > 1
    certificates = _certificates(args)
    return Dask(args.dask or "local", args.workers or 1, certificates) if wants_dask else ThisProcess()


def _certificates(args: argparse.Namespace) -> dict[str, str]:
    found = {name: given for name, (option, _) in TLS.items() if (given := getattr(args, option[2:].replace("-", "_")))}
    for name, file in found.items():
        if args.dask in (None, "local"):
            todo = "a cluster of our own makes certificates itself"
            raise InputError.of(TLS[name][0], file, "an addition to --dask ADDRESS", todo)
        if not Path(file).is_file():
            raise InputError.of(TLS[name][0], file, "an existing file", "check the path")
    if found and not {"tls_ca_file", "tls_client_cert"} <= found.keys():
        options = ", ".join(TLS[name][0] for name in found)
        raise InputError.of("certificates", options, "--tls-ca-file and --tls-cert, and --tls-key where it is apart")
    return found
