"""Threads for calls that block: no more than there are calls, no more than allowed, none that idles."""

import threading

import pytest

from app.kernel import crew
from app.kernel.crew import Crew
from app.sandbox import eventually


def nothing():
    pass


def running(name):
    return [one for one in threading.enumerate() if one.name == name]


def test_calls_run_beside_one_another_up_to_the_limit():
    made, gate, told = Crew("beside", 3), threading.Event(), []
    inside = threading.Semaphore(0)

    def call():
        inside.release()
        gate.wait(10)

    answers = [made.run(call, lambda: told.append(1)) for _number in range(5)]
    for _number in range(3):
        assert inside.acquire(timeout=10)
    assert not inside.acquire(timeout=0.05)
    assert len(running("beside")) == 3
    gate.set()
    for answer in answers:
        answer.result(10)
    assert made.close(10)
    assert len(told) == 5
    assert running("beside") == []


def test_a_thread_is_used_again():
    made = Crew("again", 8)
    for _number in range(20):
        back = threading.Event()
        made.run(nothing, back.set).result(10)
        assert back.wait(10)
        eventually(lambda: made._free == len(made._threads))
    assert len(running("again")) == 1
    assert made.close(10)


def test_a_failure_is_the_answer():
    made = Crew("fails", 1)

    def call():
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        made.run(call, nothing).result(10)
    made.run(nothing, nothing).result(10)
    assert made.close(10)


def test_what_idles_ends_and_comes_again(monkeypatch):
    monkeypatch.setattr(crew, "_IDLE", 0.01)
    made = Crew("idle", 4)
    made.run(nothing, nothing).result(10)
    eventually(lambda: running("idle") == [])
    made.run(nothing, nothing).result(10)
    assert made.close(10)


def test_closing_waits_no_longer_than_told():
    made, gate = Crew("stuck", 1), threading.Event()
    answer = made.run(lambda: gate.wait(10) and None, nothing)
    assert not made.close(0.01)
    gate.set()
    answer.result(10)
