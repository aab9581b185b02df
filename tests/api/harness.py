"""The API as the daemon has it: real worker and store, a kernel in memory, no firewall."""

import asyncio
from concurrent.futures import Future
from functools import cache, partial
from ipaddress import ip_interface, ip_network

import httpx

from app.api.deps import Backend
from app.firewall.null import NullFirewall
from app.kernel.fake import FakeKernel
from app.main import create_app, export
from app.model.errors import NotFound
from app.reconcile.worker import Parts, Worker
from app.services.catalog import Catalog
from app.store.session import is_writable, read

PROBLEM = "application/problem+json"
POOLS = ((ip_network("192.168.15.0/24"), 24), (ip_network("192.168.16.0/22"), 24))
UPLINK = "203.0.113.2"
UPLINK6 = "2001:db8::2"


def checked_problem(answer, status, code, words=()):
    """The problem document, of the form that every error has."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    body = answer.json()
    assert body["code"] == code, body
    assert body["status"] == status
    assert body["title"]
    assert body["type"] == f"urn:bridgehead:problem:{code}"
    for word in words:
        assert str(word) in body["detail"], body["detail"]
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    return body


@cache
def application():
    """Building it takes longer than most tests."""
    return create_app()


class Client:
    """Calls an ASGI application, with no server in between; a bug in it is a 500 as for everybody."""

    def __init__(self, app, headers=None):
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://bridgehead", headers=headers)

    def request(self, method, path, **options):
        return self._runner.run(self._client.request(method, path, **options))

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def post(self, path, **options):
        return self.request("POST", path, **options)

    def patch(self, path, **options):
        return self.request("PATCH", path, **options)

    def delete(self, path, **options):
        return self.request("DELETE", path, **options)

    def gather(self, *requests):
        """Requests (method, path, body) at the same time."""

        return self.together([self.prepared(method, path, json=body) for method, path, body in requests])

    def prepared(self, method, path, **options):
        """A request for `together`."""
        return partial(self._client.request, method, path, **options)

    def together(self, requests):
        """The answers to prepared requests that are sent at the same time."""

        async def sent():
            return await asyncio.gather(*(request() for request in requests))

        return self._runner.run(sent())

    @staticmethod
    def of(app):
        """A client of another application."""
        return Client(app)

    def close(self):
        self._runner.run(self._client.aclose())
        self._runner.close()


class Api:
    """A client, and what stands behind the API."""

    def __init__(self, engine, kernel, pools=POOLS, app=None):
        self.engine, self.kernel = engine, kernel
        self.catalog = Catalog()
        self.worker = Worker(Parts(engine, self.catalog, lambda: kernel, NullFirewall, pools, 3600.0))
        self.worker.start()
        backend = Backend(self.catalog, self.worker, lambda: is_writable(engine), "none", lambda: export(engine))
        self.app = app or application()
        self.app.state.backend = backend
        self.client = Client(self.app)

    def close(self):
        running = self.worker.alive
        self.worker.stop()
        if running:  # else another goes on with its database
            self.check_store()

    def check_store(self):
        """What the worker has in memory is what is stored, to the letter: an object's tag is of that."""
        held, stored = self.worker._requests.store, read(self.engine)
        for kind in ("networks", "endpoints", "portmaps", "allocations"):
            assert list(map(repr, getattr(held, kind)())) == list(map(repr, getattr(stored, kind)()))
        assert held._cursors == stored._cursors

    def reread(self):
        """Has the worker take in what somebody wrote into the database behind its back."""

        def again(_context):
            self.worker._requests.store = read(self.engine)
            raise NotFound("nothing")

        assert self.worker.submit(again).exception()

    def settle(self):
        """Returns once the worker has done its first pass and all that was asked of it."""
        done = Future()

        def nothing(_context):
            done.set_result(None)
            raise NotFound("nothing")

        self.worker.submit(nothing)
        done.result()

    def post(self, path, **body):
        answer = self.client.post(path, json=body)
        assert answer.status_code == 201, answer.text
        return answer.json()

    def network(self, name="web", **body):
        return self.post("/networks", name=name, **body)

    def endpoint(self, namespace="red", network="web", **body):
        return self.post("/endpoints", network=network, namespace=namespace, **body)

    def portmap(self, endpoint="red", **body):
        return self.post("/portmaps", endpoint=endpoint, **body)

    def patch(self, path, **body):
        answer = self.client.patch(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path):
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def delete(self, path):
        answer = self.client.delete(path)
        assert answer.status_code == 204, answer.text
        assert answer.content == b""

    def state(self):
        """Everything there is: answers, rows, kernel."""
        lists = ("/networks", "/endpoints", "/portmaps", "/ipam/pools", "/ipam/allocations")
        with self.engine.connect() as connection:
            rows = [
                connection.exec_driver_sql(f"SELECT * FROM {table} ORDER BY seq").all()
                for table in ("network", "endpoint", "portmap", "allocation")
            ]
        return [self.client.get(path).json() for path in lists], rows, self.kernel.snapshot()

    def refused(self, method, path, body, status, code, *words, **options):
        """The request is refused in the right form, and nothing has changed."""
        before = self.state()
        if body is not None:
            options["json"] = body
        answer = self.client.request(method, path, **options)
        problem = checked_problem(answer, status, code, words)
        assert self.state() == before
        return problem


def make_kernel():
    kernel = FakeKernel()
    addresses = (ip_interface(f"{UPLINK}/24"), ip_interface(f"{UPLINK6}/64"))
    kernel.add_link("uplink", *addresses, mtu=1400, uplink=True)
    return kernel
