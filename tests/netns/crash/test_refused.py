"""The kernel refuses each operation in turn: the request fails and changes nothing, and the same request works then."""

import re
import time
from contextlib import ExitStack

import pytest
from crash.history import HISTORY, view
from crash.points import REFUSE, REFUSE_ALL
from crash.victim import BACKENDS, IMPATIENT, Victim
from world import endpoint, get, network, portmap, refused

from app.sandbox import eventually


class Refused(Victim):
    """A daemon that is told no at every single operation of every request."""

    def settle(self):
        """Whatever the worker has to put right comes before a later request."""
        refused(self.api.delete("/networks/nobody"), 404, "not_found")

    def try_each_operation(self, name, step):
        """Until the step is through without being refused; how often it was."""
        before, times = view(self.api), 0
        while True:
            self.board.aim(REFUSE, times + 1)
            answer = step(self.api)
            self.board.rest()
            if answer.is_success:
                return times
            times += 1
            problem = refused(answer, 502, "kernel_refused", "injected by a test")
            assert problem["errno_name"] == "ENOMEM"
            self.settle()
            assert view(self.api) == before, f"{name}: refused at operation {times}, and something changed"


@pytest.mark.parametrize("firewall", BACKENDS)
def test_refused_at_every_operation(firewall, figure):
    with ExitStack() as stack:
        victim = Refused(stack, firewall)
        times = sum(victim.try_each_operation(name, step) for name, step in HISTORY.items())
        assert times >= len(HISTORY)
        victim.host_becomes(victim.untouched)
        victim.nothing_to_heal()
    figure(f"{times} operations of {len(HISTORY)} kinds of request refused in turn, each undone and told")


_DAMAGE = {
    "bridge": ["ip", "link", "delete", "web"],
    "setting": ["sysctl", "-w", "net.ipv4.conf.web.route_localnet=0"],
    "inner link": ["ip", "netns", "exec", "red", "ip", "link", "delete", "eth0"],
}


@pytest.mark.parametrize("damage", _DAMAGE)
@pytest.mark.parametrize("firewall", BACKENDS)
def test_healing_that_is_refused_is_tried_less_and_less_often(firewall, damage, figure):
    with ExitStack() as stack:
        victim = Victim(stack, firewall, IMPATIENT)
        network(victim.api)
        endpoint(victim.api, "red")
        portmap(victim.api)
        whole, told = victim.state(), len(victim.daemon.log())
        victim.board.aim(REFUSE_ALL, 0)
        first = victim.board.read()[1]
        victim.sandbox.host.exec(_DAMAGE[damage])

        def waits():
            return [float(found) for found in re.findall(r"tried again in (\S+) s", victim.daemon.log()[told:])]

        tried = eventually(lambda: waits() if len(waits()) >= 5 else None, timeout=20.0, what="five passes in vain")
        shown = [one["status"] for kind in ("networks", "endpoints", "portmaps") for one in get(victim.api, kind)]
        assert any(one["state"] != "ready" and "injected by a test" in one["message"] for one in shown), shown
        refusals = victim.board.read()[1] - first
        assert refusals >= 5
        victim.board.rest()
        start = time.monotonic()
        victim.host_becomes(whole[2])
        eventually(lambda: view(victim.api) == whole[0], what="everything ready")
        assert tried == sorted(tried)
        assert [tried[at + 1] / tried[at] for at in range(len(tried) - 1) if tried[at] != tried[at + 1]][:3] == [2] * 3
        figure(
            f"{refusals} operations refused, tried again after {', '.join(f'{wait:g}' for wait in tried)} s; "
            f"right {time.monotonic() - start:.2f} s after the kernel relented"
        )
