"""See `machine.py`."""

import os
import time

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.internal.conjecture import engine
from hypothesis.stateful import run_state_machine_as_test
from stateful.machine import FAILED, MACHINES, TOTALS

BACKENDS = ("nftables", "iptables")
SECONDS = 150
SHRINKING_SECONDS = 60
"""For making a history that fails shorter: hypothesis itself would take five minutes."""


def _settings(histories, steps, *, shrink):
    return settings(
        max_examples=histories,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        phases=[Phase.generate, *([Phase.shrink] if shrink else [])],
        suppress_health_check=list(HealthCheck),
    )


def _figures():
    words = [f"{TOTALS[name]} {name}" for name in ("histories", "steps", "requests", "refused", "starts")]
    return ", ".join([*words, f"{TOTALS['interferences']} interferences, all healed"])


def _run(firewall, number, histories, steps, *, shrink=False):
    chosen = seed(number)(MACHINES[firewall])
    FAILED.clear()
    try:
        run_state_machine_as_test(chosen, settings=_settings(histories, steps, shrink=shrink))
    except BaseException as failure:
        failure.add_note("\n".join([f"{firewall}, seed {number}", *FAILED]))
        raise


@pytest.mark.parametrize("firewall", BACKENDS)
def test_some_histories(firewall, figure):
    TOTALS.clear()
    _run(firewall, 15, histories=8, steps=30)
    figure(_figures())


@pytest.mark.soak
@pytest.mark.parametrize("firewall", BACKENDS)
def test_many_histories(firewall, figure, monkeypatch):
    monkeypatch.setattr(engine, "MAX_SHRINKING_SECONDS", SHRINKING_SECONDS)
    TOTALS.clear()
    number, start = int.from_bytes(os.urandom(4), "big"), time.monotonic()
    rounds = 0
    while time.monotonic() - start < SECONDS:  # in short rounds, so that it ends in time
        _run(firewall, number + rounds, histories=3, steps=50, shrink=True)
        rounds += 1
    figure(f"{_figures()}; seeds from {number}, {time.monotonic() - start:.0f} s")
