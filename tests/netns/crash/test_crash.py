"""Killed anywhere: what was acknowledged is there, the rest whole or not at all, and nothing is left over."""

import time
from contextlib import ExitStack

import pytest
from crash.history import HISTORY
from crash.victim import BACKENDS, WHOLE, Victim, kill_at_points

PARTS = [range(at, min(at + 4, len(HISTORY))) for at in range(0, len(HISTORY), 4)]
"""Of the history, so that workers share it."""


@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_some_points(firewall, figure):
    figure(_killed(firewall, stride=17, part=WHOLE))


@pytest.mark.soak
@pytest.mark.parametrize("part", PARTS, ids=str)
@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_every_point(firewall, part, figure):
    figure(_killed(firewall, stride=1, part=part))


def _killed(firewall, stride, part):
    start = time.monotonic()
    with ExitStack() as stack:
        victim = Victim(stack, firewall)
        kill_at_points(victim, stride, part)
    return f"killed at {victim.kills} points of {len(part)} kinds of request, {time.monotonic() - start:.0f} s"
