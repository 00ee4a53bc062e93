"""Connect a process to a Ray cluster, or start one."""

import logging
import os
import socket
import sys
from typing import Any

_NO_STATISTICS = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray sends statistics of its use to its makers by default."""

LOCAL = "local"
"""The address that has Ray start a cluster of this host."""
_ANSWER_SECONDS = 10.0
"""Limit for a head's port to answer."""


def check_port(address: str) -> None:
    """Check that something answers at `HOST:PORT`; Ray alone tries for minutes.

    Raises:
        OSError: Nothing does.
        OverflowError: It is no port's number.
    """
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()


def connect(address: str, token: str, **own: Any) -> None:
    """Connect to the cluster at the address, or start one of this host (`LOCAL`) until this process ends.

    Ray's chatter is dropped: its reasons come as exceptions.

    Args:
        address: See `ray.init`.
        token: The secret of a cluster that this sweep has started, which admits nobody else; empty for what
            Ray's own environment says.
        own: Further arguments of it.

    Raises:
        Exception: It cannot be reached; Ray raises several, and ends the process for others.
    """
    os.environ.update(_NO_STATISTICS)
    if token:
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=token)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # as long as the process
    import ray

    logging.getLogger("ray").setLevel(logging.ERROR)
    ray.init(address, include_dashboard=False, configure_logging=False, log_to_driver=False, **own)
