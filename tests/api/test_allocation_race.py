"""Thousands of allocations racing releases in a small subnet: none held twice, none lost."""

import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import ip_address, ip_network

import pytest

from app.model.errors import AddressTaken, PoolExhausted
from app.services import allocations, endpoints
from app.services.requests import AllocationCreate, EndpointCreate

SUBNET = ip_network("10.0.0.0/23")
SPACE = SUBNET.num_addresses - 3
"""Without the network's own address, its broadcast, and the gateway."""
THREADS = 8


class Books:
    """Who holds what, kept by the clients from their answers alone."""

    def __init__(self):
        self._lock = threading.Lock()
        self.held = {}
        self.counted = Counter()
        self.wrong = []

    def note(self, outcome):
        with self._lock:
            self.counted[outcome] += 1

    def got(self, address, holder):
        with self._lock:
            if address in self.held:
                self.wrong.append(f"{address} given to {holder}, while {self.held[address]} holds it")
            if ip_address(address) not in SUBNET:
                self.wrong.append(f"{address} is outside")
            self.held[address] = holder

    def gives_back(self, address):
        """Before the release is asked for: from then on another may get it."""
        with self._lock:
            del self.held[address]


class Client:
    """Allocates and releases at random; reservations mostly, endpoints too, some by address."""

    def __init__(self, api, books, number, wanted):
        self._api, self._books, self._wanted = api, books, wanted
        self._random = random.Random(number)
        self._number, self._made = number, 0
        self._mine = []

    def run(self):
        while self._made < self._wanted:
            # so that the subnet is full now and then: by itself, each client would hold 75, and 64 are there for it
            if self._mine and self._random.random() < len(self._mine) / 150:
                self._release()
            else:
                self._allocate()

    def _submit(self, service):
        return self._api.worker.submit(service).result(60)

    def _allocate(self):
        address = str(SUBNET[self._random.randrange(2, SPACE + 2)]) if self._random.random() < 0.2 else None
        endpoint = self._random.random() < 0.1
        if endpoint:
            name = f"n{self._number}-{self._made}"
            body = EndpointCreate(network="web", namespace=name, address=address)
            service = partial(endpoints.create, request=body)
        else:
            service = partial(allocations.create, request=AllocationCreate(network="web", address=address))
        try:
            made = self._submit(service)
        except AddressTaken:
            self._books.note("taken")
            return
        except PoolExhausted:
            self._books.note("exhausted")
            return
        held = str(made.addresses[0] if endpoint else made.address)
        self._books.got(held, made.id)
        self._books.note("allocated")
        self._made += 1
        self._mine.append((held, made.id, endpoint))

    def _release(self):
        held, identity, endpoint = self._mine.pop(self._random.randrange(len(self._mine)))
        self._books.gives_back(held)
        if endpoint:
            self._submit(partial(endpoints.delete, ref=identity, force=False))
        else:
            self._submit(partial(allocations.delete, allocation_id=identity))
        self._books.note("released")


def race(api, figure, total):
    api.network(subnet=str(SUBNET))
    books = Books()
    clients = [Client(api, books, number, total // THREADS) for number in range(THREADS)]
    began = time.monotonic()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(Client.run, clients))
    took = time.monotonic() - began
    assert books.wrong == []
    counted = books.counted
    shown = {one["address"]: one["id"] for one in api.get("/ipam/allocations") if one["holder"]["kind"] != "gateway"}
    assert shown == books.held
    with api.engine.connect() as connection:
        rows = connection.exec_driver_sql("SELECT address, id FROM allocation WHERE kind != 'gateway'").all()
    assert dict(map(tuple, rows)) == books.held
    assert len(rows) == len(books.held) == counted["allocated"] - counted["released"]
    (pool,) = api.get("/ipam/pools")
    assert pool["free"] == SPACE - len(books.held)
    figure(
        f"{counted['allocated']} allocations and {counted['released']} releases by {THREADS} clients in {took:.1f} s, "
        f"{counted['taken']} refused as taken and {counted['exhausted']} for want of room: 0 held twice, 0 lost"
    )
    return counted


def test_a_thousand(api, figure):
    assert race(api, figure, 1000)["allocated"] == 1000


@pytest.mark.soak
def test_ten_thousand(api, figure):
    counted = race(api, figure, 10_000)
    assert counted["allocated"] == 10_000
    assert counted["exhausted"] > 0


def test_a_full_subnet_gives_every_address_once(api):
    api.network(subnet="10.0.0.0/27")
    found = [api.post("/ipam/allocations", network="web")["address"] for _ in range(29)]
    assert len(set(found)) == 29
    api.refused("POST", "/ipam/allocations", {"network": "web"}, 409, "pool_exhausted")
