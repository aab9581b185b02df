"""What a network driver does: checks a network, and says what the kernel shall hold for it."""

from __future__ import annotations

from typing import Protocol

from app.model.spec import Endpoint, Network
from app.model.state import Item


class Driver(Protocol):
    """Pure: specs in, items out; nothing is touched."""

    def validate(self, network: Network) -> None:
        """Raises Invalid where the network cannot be built."""

    def network(self, network: Network) -> tuple[Item, ...]:
        """What the network itself needs on the host."""

    def endpoint(self, network: Network, endpoint: Endpoint, *, published: bool) -> tuple[Item, ...]:
        """What connects an endpoint; `published`: a port of the host leads to it."""
