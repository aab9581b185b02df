"""A worker with the fake kernel, driven from outside as requests do."""

import time
from functools import partial
from ipaddress import ip_network
from threading import Event

import pytest
from test_executor import Rules

from app.kernel.fake import FakeKernel
from app.model.errors import NotFound
from app.reconcile import healer as healer_module
from app.reconcile.worker import Parts, Worker
from app.services import endpoints, networks, portmaps
from app.services.catalog import Catalog
from app.services.requests import EndpointCreate, NetworkCreate, PortmapCreate
from app.store.session import open_database

POOLS = ((ip_network("192.168.15.0/24"), 24),)
WAIT = 30


class World:
    def __init__(self, path):
        self.engine = open_database(f"sqlite:///{path}")
        self.kernel, self.rules, self.catalog = FakeKernel(), Rules(), Catalog()
        self.started = None

    def start(self):
        parts = Parts(self.engine, self.catalog, lambda: self.kernel, lambda: self.rules, POOLS, 3600.0)
        self.worker = Worker(parts)
        self.worker.start()
        return self

    def restart(self):
        self.worker.stop()
        self.catalog = Catalog()
        return self.start()

    def do(self, service, **arguments):
        return self.worker.submit(partial(service, **arguments)).result(WAIT)

    def make(self):
        self.do(networks.create, request=NetworkCreate(name="web"))
        self.do(endpoints.create, request=EndpointCreate(network="web", namespace="red"))
        return self.do(portmaps.create, request=PortmapCreate(endpoint="red", host_port=53, protocol="udp"))

    def settle(self):
        """Returns once the worker is idle, its pass before it done."""
        with pytest.raises(NotFound):
            self.do(networks.delete, ref="nothing", force=False)

    def read_only(self, on):
        """No commit from now on; reading goes on."""
        import sqlalchemy

        def refuse(_connection):
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception("attempt to write a readonly database"))

        if on:
            sqlalchemy.event.listen(self.engine, "commit", refuse)
            self._refuse = refuse
        else:
            sqlalchemy.event.remove(self.engine, "commit", self._refuse)


class Held:
    """Holds the worker in a request until released, so that those after it wait together."""

    def __init__(self, world):
        self._entered, self._release = Event(), Event()
        self.answer = world.worker.submit(self._hold)

    def _hold(self, _context):
        self._entered.set()
        assert self._release.wait(WAIT)
        raise NotFound("held")

    def __enter__(self):
        assert self._entered.wait(WAIT)
        return self

    def __exit__(self, *_failure):
        self._release.set()


def stored(world):
    with world.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT name FROM network ORDER BY name").scalars().all()


def bridges(world):
    return sorted(name for name, link in world.kernel.host.links.items() if link.kind == "bridge")


def passes(world, monkeypatch):
    """The list that grows with each full pass."""
    seen = []
    real = healer_module.heal

    def counted(*arguments):
        seen.append(time.monotonic())
        return real(*arguments)

    monkeypatch.setattr(healer_module, "heal", counted)
    return seen
