"""Ours beside others' tools: an endpoint, two hundred of them, one with a port."""

import time

from bench.endpoints import CLIENTS, MANY
from bench.ground import alternate
from bench.http import packed, together
from bench.peers import PEERS, Absent
from bench.registry import Samples, Target, bench
from bench.site import SETTLE

ROUNDS, PORT_ROUNDS, PORTS = 30, 10, 500
OURS = "Bridgehead"


@bench(
    "peers",
    f"Beside others: an endpoint, {MANY} by {CLIENTS} clients, one with a port where {PORTS} are",
    Target("POST /endpoints / netavark", f"{OURS}: added", 0.1, "netavark: added"),
    Target("POST /endpoints / Docker (network connect)", f"{OURS}: added", 0.1, "Docker: added"),
    Target("POST /endpoints / CNI bridge, portmap, firewall", f"{OURS}: added", 0.1, "CNI: added"),
)
def peers(ground):
    samples = Samples()
    ours = _Ours(ground)
    them = [ours, *_installed(ground, samples)]
    for one in them:
        one.hold()
    alternate(samples, ground.sized(ROUNDS), *(_once(one) for one in them))
    for one in them:
        samples.add(f"{one.name}: {CLIENTS} clients", one.rate(), "/s")
    for one in them:
        one.fill(ground.sized(PORTS))
    alternate(samples, ground.sized(PORT_ROUNDS), *(_with_port(one) for one in them))
    return samples


def _installed(ground, samples):
    if not ground.peers:
        samples.notes.append("without the peers")
        return
    for kind in PEERS:
        try:
            yield kind(ground)
        except Absent as reason:
            samples.notes.append(f"without {kind.name}: {reason}")


def _once(one):
    def work():
        adding = one.attach(0)
        time.sleep(SETTLE)
        return {**adding, **one.detach(0)}

    return work


def _with_port(one):
    return lambda: one.attach_with_port(1)


class _Ours:
    """Bridgehead, as the peers are."""

    name = OURS

    def __init__(self, ground):
        self._site = ground.own_site()
        for number in range(MANY):
            self._site.sandbox.add_netns(f"c{number}")

    def hold(self):
        """Its network is there without."""

    def attach(self, number):
        body = {"network": "web", "namespace": f"c{number}"}
        return {f"{OURS}: added": self._site.client.ask("POST", "/endpoints", body)[1]}

    def detach(self, number):
        return {f"{OURS}: removed": self._site.client.ask("DELETE", f"/endpoints/c{number}")[1]}

    def fill(self, ports):
        body = {"network": "web", "namespace": "ports"}
        self._site.client.ask("POST", "/endpoints", body)
        for port in range(20_000, 20_000 + ports):
            body = {"endpoint": "ports", "host_port": port, "target_port": 80}
            self._site.client.ask("POST", "/portmaps", body)

    def attach_with_port(self, number):
        (adding,) = self.attach(number).values()
        body = {"endpoint": f"c{number}", "host_port": 8080, "target_port": 80}
        publishing = self._site.client.ask("POST", "/portmaps", body)[1]
        time.sleep(SETTLE)
        self._site.client.ask("DELETE", f"/endpoints/c{number}?force=true")
        return {f"{OURS}: with a port": adding + publishing}

    def rate(self):
        bodies = ({"network": "web", "namespace": f"c{number}"} for number in range(MANY))
        requests = [packed("POST", "/endpoints", body) for body in bodies]
        took = together(self._site.daemon.socket, requests, CLIENTS)
        for number in range(MANY):
            self.detach(number)
        return MANY / took
