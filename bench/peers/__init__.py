"""Other container networks, where they are installed: Debian's netavark, containernetworking-plugins, docker.io."""

from bench.peers.base import Absent, Peer
from bench.peers.cni import Cni
from bench.peers.docker import Docker
from bench.peers.netavark import Netavark

PEERS = (Netavark, Cni, Docker)

__all__ = ["PEERS", "Absent", "Peer"]
