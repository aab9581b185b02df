"""The kernel refuses each operation in turn: the request fails and changes nothing, and the same request works after."""

from contextlib import ExitStack

import pytest
from crash.history import HISTORY, view
from crash.points import REFUSE
from crash.test_crash import BACKENDS, Victim
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
        views, _points = victim.reference()
        times = 0
        for number, (name, step) in enumerate(HISTORY.items()):
            times += victim.try_each_operation(name, step)
            assert view(victim.api) == views[number + 1], name
        victim.compare_host()
        assert times >= len(HISTORY)
        told = len(victim.daemon.log())
        victim.daemon.restart()
        assert "healed" not in victim.daemon.log()[told:]
    print(f"{firewall}: {times} operations of {len(HISTORY)} kinds of request refused in turn, each undone and told")
