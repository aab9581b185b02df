"""The kernel refuses each operation in turn: the request fails and changes nothing, and the same request works then."""

from contextlib import ExitStack

import pytest
from crash.history import HISTORY, view
from crash.points import REFUSE
from crash.victim import BACKENDS, Victim
from world import refused


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
def test_refused_at_every_operation(firewall):
    with ExitStack() as stack:
        victim = Refused(stack, firewall)
        times = sum(victim.try_each_operation(name, step) for name, step in HISTORY.items())
        assert times >= len(HISTORY)
        victim.host_becomes(victim.untouched)
        victim.nothing_to_heal()
    print(f"{firewall}: {times} operations of {len(HISTORY)} kinds of request refused in turn, each undone and told")
