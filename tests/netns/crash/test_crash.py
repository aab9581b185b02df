"""Killed anywhere: what was acknowledged is there, the rest whole or not at all, and nothing is left over."""

import time
from contextlib import ExitStack

import pytest
from crash.history import HISTORY
from crash.victim import BACKENDS, Victim, kill_at_points


@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_some_points(firewall):
    with ExitStack() as stack:
        kill_at_points(Victim(stack, firewall), stride=17)


@pytest.mark.soak
@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_every_point(firewall):
    start = time.monotonic()
    with ExitStack() as stack:
        victim = Victim(stack, firewall)
        kill_at_points(victim, stride=1)
    took = time.monotonic() - start
    print(f"\n{firewall}: killed at each of {victim.kills} points of {len(HISTORY)} kinds of request, {took:.0f} s")
