"""The network over which ranks on several machines talk: the one on which they found the first."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path

import psutil

from isentrope.errors import ConfigError

GLOO = "GLOO_SOCKET_IFNAME"
_NAMED = f"or name the network's interface in {GLOO}, on every machine"


def this_host() -> str:
    """Return what tells this host from others: a container with a network of its own is one."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/net')}"
    except OSError:  # no Linux
        return platform.node()


def choose_interface(hosts: int) -> None:
    """Have gloo use the interface by which this machine reaches the first rank's, unless told.

    hosts: on how many the ranks are; on one, gloo's own choice reaches all of them.

    By itself, gloo takes the one that the machine's own name stands for: often the loopback, where
    other machines' ranks wait for one another in vain.

    Raises `ConfigError` where the first rank's address is one that only its own machine knows.
    """
    if GLOO in os.environ or hosts == 1:
        return
    master = os.environ["MASTER_ADDR"]
    own = _own_address(master, int(os.environ["MASTER_PORT"]))
    if own is None:
        return
    if ip_address(own).is_loopback:
        raise ConfigError(
            f"MASTER_ADDR ({master}) is {own} on this machine, where no other one reaches it: "
            "give torchrun --master-addr (with its dynamic rendezvous, --local-addr) the address "
            f"on a network that all share, {_NAMED}."
        )
    for name, addresses in psutil.net_if_addrs().items():
        if own in (address.address for address in addresses):
            os.environ[GLOO] = name


def _own_address(host: str, port: int) -> str | None:
    """Return the address from which this machine speaks to another; None: it does not say."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(address)  # nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return None


@contextmanager
def reaching_all() -> Iterator[None]:
    """Raise `ConfigError` in the place of gloo's own words where ranks do not reach one another."""
    try:
        yield
    except RuntimeError as error:
        if "connectFullMesh" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"The ranks do not reach one another ({reason}): let no firewall stand between them, "
            f"{_NAMED}."
        ) from error
