"""Random histories, killed at random points: the daemon ends up like its twin, which nobody kills."""

import os
import random
import time
from contextlib import ExitStack
from functools import partial

import httpx
import pytest
from crash.history import view
from crash.points import KILL
from crash.victim import BACKENDS, Victim
from world import get

from app.sandbox import Sandbox, eventually

STEPS = 25
_FARTHEST = 30
"""Points: about as many as a request has, so that some are not killed at all."""


def _portmap(api, protocol, port):
    found = [one["id"] for one in get(api, "portmaps") if (one["protocol"], one["host_port"]) == (protocol, port)]
    return found[0] if found else "none"


def _post(api, *, path, body):
    return api.post(f"/{path}", json=body)


def _patch(api, *, path, body):
    return api.patch(f"/{path}", json=body)


def _delete(api, *, path):
    return api.delete(f"/{path}?force=true")


def _change_portmap(api, *, protocol, port, body):
    path = f"/portmaps/{_portmap(api, protocol, port)}"
    return api.delete(path) if body is None else api.patch(path, json=body)


def _network_options(dice):
    flags = ("internal", "isolated", "icc", "masquerade", "spoof_protection")
    return {name: dice.random() < 0.5 for name in dice.sample(flags, 2)}


def any_step(dice, api):
    """A request that may well be refused; it names objects as both daemons know them."""
    number = dice.randrange(3)
    network, namespace = f"n{number}", dice.choice("abcd")
    protocol, port = dice.choice(["tcp", "udp"]), dice.randrange(8000, 8006)
    endpoints = [one["name"] for one in get(api, "endpoints")] or ["nobody"]
    subnets = {"subnet": f"10.{number}.0.0/24", "subnet6": f"fd00:{number}::/64"}
    steps = [
        partial(_post, path="networks", body={"name": network, **subnets, **_network_options(dice)}),
        partial(_post, path="endpoints", body={"network": network, "namespace": namespace}),
        partial(_post, path="endpoints", body={"network": network, "namespace": namespace, "default_route": True}),
        partial(
            _post,
            path="portmaps",
            body={
                "endpoint": dice.choice(endpoints),
                "protocol": protocol,
                "host_ip": dice.choice(["0.0.0.0", "::"]),
                "host_port": port,
                "target_port": 80,
            },
        ),
        partial(_patch, path=f"networks/{network}", body=_network_options(dice)),
        partial(_patch, path=f"networks/{network}", body={"gateway": f"10.{number}.0.{dice.randrange(200, 210)}"}),
        partial(_change_portmap, protocol=protocol, port=port, body={"endpoint": dice.choice(endpoints)}),
        partial(_change_portmap, protocol=protocol, port=port, body=None),
        partial(_delete, path=f"endpoints/{dice.choice(endpoints)}"),
        partial(_delete, path=f"networks/{network}"),
    ]
    return dice.choices(steps, weights=[3, 4, 2, 4, 3, 1, 2, 1, 1, 1])[0]


class Pair:
    """The victim, and a twin on a host of its own that gets the same requests."""

    def __init__(self, stack, firewall):
        self.victim = Victim(stack, firewall)
        twin = stack.enter_context(Sandbox(ipv6=True)).daemon(firewall=firewall)
        self.twin = stack.enter_context(twin).client

    def step(self, dice):
        step, before = any_step(dice, self.twin), view(self.twin)
        wanted = step(self.twin).status_code
        after = view(self.twin)
        self.victim.board.aim(KILL, dice.randrange(1, _FARTHEST))
        try:
            answered = step(self.victim.api).status_code
        except httpx.TransportError:
            answered = None
            self.victim.daemon.exit_code()
        self.victim.board.rest()
        if answered is None:
            self.victim.daemon.start()
            self.victim.kills += 1
            found = self.settled(before, after)
            if found == before != after:
                answered = step(self.victim.api).status_code
        elif self.victim.died_later():
            self.victim.daemon.start()
        assert answered in (wanted, None), f"{step}: {answered}, the twin's answer was {wanted}"
        self.settled(after)

    def settled(self, *wanted):
        def found():
            seen = view(self.victim.api)
            assert seen in wanted
            return seen

        return eventually(found, what="the same as the twin, before or after")

    def clear(self):
        for one in get(self.twin, "networks"):
            assert self.twin.delete(f"/networks/{one['id']}?force=true").status_code == 204
        self.victim.nothing_to_heal()
        self.victim.clear()


def killed(firewall, kills, seed):
    """How many were killed, in how many histories."""
    histories = 0
    with ExitStack() as stack:
        pair = Pair(stack, firewall)
        while pair.victim.kills < kills:
            dice = random.Random(f"{seed}-{histories}")
            try:
                for _number in range(STEPS):
                    pair.step(dice)
                pair.clear()
            except AssertionError as failure:
                failure.add_note(f"{firewall}: history {histories} of seed {seed}")
                raise
            histories += 1
        return pair.victim.kills, histories


@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_random_in_some_histories(firewall, figure):
    kills, histories = killed(firewall, 10, seed=1)
    figure(f"{kills} kills at random points of {histories} random histories")


@pytest.mark.soak
@pytest.mark.parametrize("_part", range(2))
@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_random_in_many_histories(firewall, _part, figure):
    seed, start = int.from_bytes(os.urandom(4), "big"), time.monotonic()
    kills, histories = killed(firewall, 125, seed)
    took = time.monotonic() - start
    figure(f"{kills} kills at random points of {histories} random histories, seed {seed}, {took:.0f} s")
