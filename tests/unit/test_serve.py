"""What the service manager is told while the worker starts, works, hangs and dies."""

import asyncio
import socket
from contextlib import suppress

import pytest

from app.host import serve
from app.host.notify import watchdog_seconds
from app.host.serve import STUCK_AFTER, Vital


@pytest.fixture
def heard(tmp_path, monkeypatch):
    """All that was told so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(tmp_path / "notify"))
        bound.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "30000")

        def messages():
            found = []
            with suppress(BlockingIOError):
                while True:
                    found.append(bound.recv(4096).decode())
            return found

        yield messages


class State:
    ready = alive = True
    busy = 0.0

    def vital(self):
        return Vital(lambda: self.ready, lambda: self.alive, lambda: self.busy, lambda: "3 networks")


def tell(state, *steps, seconds=0.1):
    """Runs the teller; each step changes the state, after which it has some time."""

    async def play():
        telling = asyncio.create_task(serve._tell(state.vital()))
        await asyncio.sleep(seconds)
        for step in steps:
            step()
            await asyncio.sleep(seconds)
        telling.cancel()

    asyncio.run(play())


def test_ready_and_then_well(heard):
    tell(State())
    first, *rest = heard()
    assert first == "READY=1\nSTATUS=3 networks"
    assert len(rest) >= 2
    assert set(rest) == {"WATCHDOG=1\nSTATUS=3 networks"}


def test_not_ready_before_the_first_pass(heard):
    state = State()
    state.ready = False
    before = []

    def pass_done():
        before.extend(heard())
        state.ready = True

    tell(state, pass_done)
    assert set(before) == {"WATCHDOG=1"}
    assert "READY=1\nSTATUS=3 networks" in heard()


@pytest.mark.parametrize(("name", "value"), [("alive", False), ("busy", STUCK_AFTER + 1)])
def test_no_watchdog_while_the_worker_is_dead_or_stuck(heard, name, value):
    state = State()
    tell(state, lambda: (setattr(state, name, value), heard()))
    messages = heard()
    assert "STATUS=the worker does not work any more" in messages
    assert not [one for one in messages[1:] if one.startswith("WATCHDOG")]


def test_it_is_well_again(heard):
    state = State()
    tell(state, lambda: setattr(state, "busy", STUCK_AFTER + 1), lambda: (setattr(state, "busy", 0.0), heard()))
    assert heard()[-1].startswith("WATCHDOG=1")


def test_a_manager_that_is_gone_is_no_reason_to_stop(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    tell(State(), seconds=0.01)


def test_an_abstract_socket(monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind("\0bridgehead-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@bridgehead-test-notify")
        serve.say("READY=1")
        assert bound.recv(100) == b"READY=1"


@pytest.mark.parametrize(
    ("usec", "pid", "seconds"), [("30000000", None, 30.0), ("", None, None), ("0", None, None), ("1", "1", None)]
)
def test_how_often(monkeypatch, usec, pid, seconds):
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid is not None:
        monkeypatch.setenv("WATCHDOG_PID", pid)
    assert watchdog_seconds() == seconds
