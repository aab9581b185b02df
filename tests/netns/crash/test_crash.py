"""Killed anywhere: what was acknowledged is there, the rest whole or not at all, and nothing is left over."""

import time
from contextlib import ExitStack

import pytest
from crash.history import HISTORY
from crash.victim import BACKENDS, Victim, kill_at_points


@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_some_points(firewall, figure):
    figure(_killed(firewall, stride=17))


@pytest.mark.soak
@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_every_point(firewall, figure):
    figure(_killed(firewall, stride=1))


def _killed(firewall, stride):
    start = time.monotonic()
    with ExitStack() as stack:
        victim = Victim(stack, firewall)
        kill_at_points(victim, stride)
    return f"killed at {victim.kills} points of {len(HISTORY)} kinds of request, {time.monotonic() - start:.0f} s"
