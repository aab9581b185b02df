"""A counting daemon with objects of others, each operation on it, and what that took."""

import json
import uuid
from collections import Counter
from contextlib import ExitStack, closing
from operator import sub

from counts.counter import HELD, HOLD, Board, Counts
from counts.tracer import Tracer

from app.sandbox import Sandbox, eventually
from bench.http import Client, checked, packed
from bench.site import document

ENTRY = ("tests.netns.counts.counter:run", "app.settings:Settings")
_SETTINGS = {"rate": 0, "resync": 86400.0}
BURST = 100
_TIMES = 3
"""Repetitions of an operation, the least of which counts: now and then SQLite moves its log into the database,
splits a page, or the kernel's events come in two reads."""
_KEEPER = "n0"
_FIRST_PORT = 10_000
_PATIENCE = 60.0


def _others(endpoints, ports):
    """So many of others, half of the endpoints in a second network, for a bridge takes 1,023 ports, and five in a
    namespace, for the kernel takes long to remove one: it would do so in the time of other tests.

    And one of each that stays: a network's first port sets what its last one sets back.
    """
    made = document(endpoints + 1, ports + 1)
    web = made["networks"][0]
    changed = {key: web[key].replace("10.20.", "10.21.") for key in ("subnet", "gateway", "ip_range")}
    side = {**web, **changed, "id": str(uuid.uuid4()), "name": "side", "bridge": "side"}
    made["networks"].append(side)
    for number, one in enumerate(made["endpoints"][1:]):
        namespace = f"of{number // 5}"
        one.update(netns=namespace, namespace_key=f"name:{namespace}", ifname=f"eth{number % 5}")
        if number < endpoints // 2:
            one.update(network=side["id"], address=one["address"].replace("10.20.", "10.21."))
    return made


class Site:
    """Opened within an ExitStack."""

    def __init__(self, stack, firewall, endpoints, ports):
        self._sandbox = stack.enter_context(Sandbox())
        self._daemon = self._sandbox.daemon(firewall=firewall, values=_SETTINGS, entry=ENTRY)
        self._board = Board(self._daemon.state_dir)
        self._daemon.start()
        self._client = stack.enter_context(closing(Client(self._daemon.socket)))
        self._ask("POST", "/import", _others(endpoints, ports))
        self._sandbox.add_netns("there")
        self._tracer = Tracer(self._board["worker"])
        stack.callback(self._tracer.close)
        stack.callback(self._daemon.kill)
        self.calls = {}
        """By operation: its system calls, by number (ausyscall(8))."""

    @property
    def denied(self):
        """Why no system calls are counted, empty where they are."""
        return self._tracer.denied

    def measure(self, *, endpoints):
        """Counts by operation on ports, and where wanted on endpoints."""
        counts = {}
        if endpoints:
            self._endpoints(counts)
            bodies = [{"network": "web", "namespace": f"b{number}"} for number in range(BURST)]
            self._bursts(counts, "endpoints", "endpoint", bodies)
        self._first_port(counts)
        for protocol in ("tcp", "udp"):
            self._portmaps(counts, protocol)
            bodies = [_port(protocol, _FIRST_PORT + number) for number in range(BURST)]
            self._bursts(counts, "portmaps", f"{protocol} port", bodies)
        return {what: one._replace(calls=0) for what, one in counts.items()} if self.denied else counts

    def _ask(self, method, path, body=None):
        return self._client.ask(method, path, body)[0]

    # --- counting

    def _now(self):
        calls = self._tracer.counts()
        return self._board.counts()._replace(calls=calls.total()), calls

    def _idle(self):
        eventually(lambda: self._board["idle"] == 1, _PATIENCE, "the worker waits")
        return self._now()

    def _taken(self, what, before):
        after = self._idle()
        calls = after[1] - before[1]
        self.calls[what] = min(self.calls.get(what, calls), calls, key=Counter.total)
        return Counts(*map(sub, after[0], before[0]))

    def _one(self, counts, what, method, path, body=None):
        before = self._idle()
        answer = self._ask(method, path, body)
        taken = self._taken(what, before)
        counts[what] = Counts(*map(min, counts.get(what, taken), taken))
        return answer

    def _burst(self, counts, what, requests):
        """Each from a client of its own, all of them waiting when the first one is taken up."""
        clients = [Client(self._daemon.socket) for _request in requests]
        self._board["held"] = HOLD
        self._ask("GET", "/host")
        eventually(lambda: self._board["held"] == HELD, _PATIENCE, "the worker is held")
        before, submitted = self._now(), self._board["submitted"]
        with ExitStack() as stack:
            for client, request in zip(clients, requests, strict=True):
                stack.enter_context(closing(client)).fileno()  # connects
                client.send(packed(*request))
            eventually(lambda: self._board["submitted"] == submitted + len(requests), _PATIENCE, "all of them wait")
            self._board["held"] = 0
            answers = [checked(client.receive(), what) for client in clients]
        counts[what] = self._taken(what, before)
        return [json.loads(answer.body) for answer in answers if answer.body]

    # --- operations

    def _endpoints(self, counts):
        for _time in range(_TIMES):
            for namespace, words in (("there", "namespace there"), ("new", "with its namespace")):
                body = {"network": "web", "namespace": namespace}
                made = self._one(counts, f"POST endpoint, {words}", "POST", "/endpoints", body)
                self._one(counts, f"DELETE endpoint, {words}", "DELETE", f"/endpoints/{made['id']}")

    def _first_port(self, counts):
        """An endpoint's, whose bridge port turns round what comes from it while it has any."""
        endpoint = self._ask("POST", "/endpoints", {"network": "web", "namespace": "there"})["id"]
        for number in range(_TIMES):
            body = _port("tcp", _FIRST_PORT + number) | {"endpoint": endpoint}
            made = self._one(counts, "POST tcp port, its endpoint's first", "POST", "/portmaps", body)
            path = f"/portmaps/{made['id']}"
            self._one(counts, "DELETE tcp port, its endpoint's last", "DELETE", path)
        self._ask("DELETE", f"/endpoints/{endpoint}")

    def _portmaps(self, counts, protocol):
        for number in range(_TIMES):
            body = _port(protocol, _FIRST_PORT + number)
            path = f"/portmaps/{self._one(counts, f'POST {protocol} port', 'POST', '/portmaps', body)['id']}"
            self._one(counts, f"PATCH {protocol} port", "PATCH", path, {"target_port": 81})
            self._one(counts, f"DELETE {protocol} port", "DELETE", path)

    def _bursts(self, counts, path, words, bodies):
        made = self._burst(counts, f"{BURST} x POST {words}", [("POST", f"/{path}", body) for body in bodies])
        gone = [("DELETE", f"/{path}/{one['id']}") for one in made]
        self._burst(counts, f"{BURST} x DELETE {words}", gone)


def _port(protocol, host_port):
    return {"endpoint": _KEEPER, "protocol": protocol, "host_port": host_port, "target_port": 80}
