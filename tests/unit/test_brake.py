"""The brake on a fight, by a clock that the test turns."""

import logging

import pytest

from app.reconcile.brake import FAST_REPAIRS, WINDOW, Brake

KEY = ("network", "7")
LONGEST = 60.0


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def brake(clock):
    return Brake(LONGEST, now=clock)


def fight(brake, clock, times=FAST_REPAIRS, every=0.1):
    for _time in range(times):
        assert not brake.holds("7")
        brake.repaired([("7", "network 'web'")])
        clock.now += every


def test_the_first_repairs_are_made_at_once_and_then_they_wait(brake, clock, caplog):
    fight(brake, clock)
    assert brake.holds("7")
    assert not brake.holds("8")
    assert [record.getMessage() for record in caplog.records] == [
        "network 'web': somebody undoes each repair (10 in 0.9 s); the next ones wait, up to 60 s"
    ]


def test_each_further_repair_doubles_the_wait_up_to_the_longest(brake, clock, caplog):
    fight(brake, clock)
    waits = []
    for _time in range(9):
        start = clock.now
        brake.hold("7", KEY)
        assert brake.ripe() == set()
        while brake.holds("7"):
            clock.now += 0.05
        waits.append(round(clock.now - start))
        assert brake.ripe() == {KEY}
        assert brake.ripe() == set()
        brake.repaired([("7", "network 'web'")])
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert len(caplog.records) == 1  # said once


def test_repairs_that_are_far_apart_are_no_fight(brake, clock):
    fight(brake, clock, times=5 * FAST_REPAIRS, every=WINDOW / (FAST_REPAIRS - 1) + 0.01)
    assert not brake.holds("7")


def test_one_repair_of_many_parts_counts_once(brake):
    brake.repaired([("7", "network 'web'")] * FAST_REPAIRS)
    assert not brake.holds("7")


def test_where_it_stays_quiet_all_is_as_before(brake, clock, caplog):
    caplog.set_level(logging.INFO)
    fight(brake, clock)
    clock.now += WINDOW
    brake.ripe()
    assert caplog.records[-1].getMessage() == "network 'web': nobody undoes the repairs any more"
    fight(brake, clock)
    assert brake.holds("7")


def test_who_begins_again_too_soon_waits_on(brake, clock):
    fight(brake, clock)
    clock.now += WINDOW / 2
    assert not brake.holds("7")
    brake.ripe()
    brake.repaired([("7", "network 'web'")])
    clock.now += 1.9
    assert brake.holds("7")


def test_a_look_at_everything_lets_nothing_wait(brake, clock):
    fight(brake, clock)
    assert "somebody undoes each repair" in brake.hold("7", KEY)
    assert brake.waits("7")
    brake.release()
    assert not brake.waits("7")
    clock.now += 2
    assert brake.ripe() == set()
