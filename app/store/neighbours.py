"""Which networks meet in a namespace: an index of the endpoints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from app.model.spec import Endpoint


class Neighbours:
    """For each network, the others that a namespace with an endpoint of it is on."""

    def __init__(self) -> None:
        self._members: dict[str, Counter[str]] = {}
        self._beside: dict[str, Counter[str]] = {}

    def add(self, _identity: Hashable, endpoint: Endpoint) -> None:
        members = self._members.setdefault(endpoint.namespace_key, Counter())
        members[endpoint.network_id] += 1
        if members[endpoint.network_id] == 1:
            self._count(endpoint.network_id, members, 1)

    def remove(self, _identity: Hashable, endpoint: Endpoint) -> None:
        members = self._members[endpoint.namespace_key]
        members[endpoint.network_id] -= 1
        if members[endpoint.network_id] == 0:
            del members[endpoint.network_id]
            self._count(endpoint.network_id, members, -1)
        if not members:
            del self._members[endpoint.namespace_key]

    def _count(self, network_id: str, members: Iterable[str], change: int) -> None:
        for other in members:
            if other != network_id:
                for one, another in ((network_id, other), (other, network_id)):
                    beside = self._beside.setdefault(one, Counter())
                    beside[another] += change
                    if not beside[another]:
                        del beside[another]
                    if not beside:
                        del self._beside[one]

    def beside(self, network_id: str) -> Iterable[str]:
        """The ids of the other networks."""
        return self._beside.get(network_id, ())
