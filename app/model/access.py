"""Who asks, and what they may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """`read` sees everything and changes nothing."""

    READ = "read"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Peer:
    """The process at the other end of the unix socket (SO_PEERCRED, unix(7)), as of its connect(2)."""

    pid: int
    uid: int
    gid: int
    comm: str = ""
    """The program's name (proc_pid_comm(5)), as far as it could be read."""

    def __str__(self) -> str:
        return f"uid {self.uid} pid {self.pid} ({self.comm or '?'})"


@dataclass(frozen=True, slots=True)
class Principal:
    """Whoever sent a request.

    name: as the audit log shows it, such as `token ci` or `uid 0 pid 4711 (curl)`; networks: the only ones, by id
    or name, that it may change, or whose endpoints and ports it may; None for all. confined: it may not connect
    namespaces that are somebody else's. uid: of the socket's peer, None over TCP. certificate: the subject of the
    one that the client showed, empty for none.
    """

    name: str
    role: Role = Role.WRITE
    networks: frozenset[str] | None = None
    confined: bool = False
    uid: int | None = None
    certificate: str = ""

    @property
    def shown(self) -> str:
        """All that is known of who it is, for the audit log."""
        return with_certificate(self.name, self.certificate)

    @property
    def unlimited(self) -> bool:
        """Whether nothing is refused to it."""
        return self.role is Role.WRITE and self.networks is None and not self.confined

    def may_change(self, *network: str) -> bool:
        """Whether it may change a network, given by its id and name."""
        return self.role is Role.WRITE and (self.networks is None or not self.networks.isdisjoint(network))


def with_certificate(name: str, subject: str) -> str:
    """A name, and beside it the certificate that its bearer showed."""
    return f"{name}, certificate {subject}" if subject else name


DAEMON = Principal("bridgehead")
"""The daemon itself."""
