"""The disk full, or read-only: every request is refused, changes nothing, and works once there is room."""

from contextlib import ExitStack, contextmanager

import httpx
import pytest
from crash.disk import PLENTY, OnDisk, writes_refused
from crash.history import HISTORY, identities, view
from crash.victim import BACKENDS, CHECKPOINTS, LATE, host_of, kill_at_points
from world import refused

from app.sandbox import eventually

_ENOUGH = 16
"""Pages, that readiness asks for."""


def is_ready(api):
    """Whether it says so, and that the database is why where it does not."""
    answer = api.get("/readyz")
    found = answer.json()
    assert (found["reconciled"], found["worker"]) == (True, True)
    assert found["database"] == found["ready"] == answer.is_success
    return answer.is_success


class Tried(OnDisk):
    """Asked for the same again and again."""

    refusals = 0

    def is_refused(self, answer, before):
        """As it should be: told, and nothing is changed."""
        problem = refused(answer, 503, "store_failed", "nothing was changed")
        refused(self.api.delete("/networks/nobody"), 404, "not_found")  # whatever is put right comes before
        assert view(self.api) == before[0], problem
        assert identities(self.api) == before[1], problem
        self.host_becomes(before[2])
        self.refusals += 1

    def try_with_more_and_more_room(self, step):
        """None at first, and a page more each time."""
        before, room = self.state(), 0
        while True:
            self.disk.leave(room)
            answer = step(self.api)
            if answer.is_success:
                return
            self.is_refused(answer, before)
            assert self.disk.room >= _ENOUGH or not is_ready(self.api)
            # what is there for a write: part of the one before is in the log that it left
            room = self.disk.room + 1

    def dies_full(self):
        """It is killed without room, and started with room: what was acknowledged is there."""
        before = self.state()
        self.disk.leave(0)
        assert self.api.get("/export").is_success
        self.daemon.kill()
        self.disk.leave(PLENTY)
        starts(self, before)
        assert is_ready(self.api)


@contextmanager
def noted(victim, name):
    try:
        yield
    except AssertionError as failure:
        failure.add_note(f"{victim.firewall}: '{name}', refused {victim.refusals} times so far")
        raise


class Killed(OnDisk):
    """Killed without room, at some point of a step, and started with room."""

    def killed_in(self, step, distance):
        self.disk.leave(0)
        return super().killed_in(step, distance)

    def revive(self):
        self.disk.leave(PLENTY)
        super().revive()

    def survived(self, step, answer):
        self.disk.leave(PLENTY)
        if not answer.is_success:
            refused(answer, 503, "store_failed", "nothing was changed")
            answer = step(self.api)
        super().survived(step, answer)


@pytest.mark.parametrize("firewall", BACKENDS)
def test_a_full_disk_is_noticed_before_anything_is_touched(firewall):
    with ExitStack() as stack:
        victim = Tried(stack, firewall)
        for name, step in HISTORY.items():
            with noted(victim, name):
                before, told = victim.state(), len(victim.daemon.log())
                victim.disk.leave(_ENOUGH - 1)
                victim.is_refused(step(victim.api), before)
                assert "bridgehead.kernel" not in victim.daemon.log()[told:]
                assert not is_ready(victim.api)
                victim.disk.leave(PLENTY)
                assert is_ready(victim.api)
                assert step(victim.api).is_success


@pytest.mark.parametrize("entry", [LATE, CHECKPOINTS], ids=["log", "checkpoints"])
@pytest.mark.parametrize("firewall", BACKENDS)
def test_a_full_disk_that_is_noticed_late_changes_nothing(firewall, entry, figure):
    with ExitStack() as stack:
        victim = Tried(stack, firewall, entry)
        for name, step in HISTORY.items():
            with noted(victim, name):
                victim.try_with_more_and_more_room(step)
                victim.dies_full()
        victim.host_becomes(victim.untouched)
        victim.nothing_to_heal()
        assert "Traceback" not in victim.daemon.log()
        figure(
            f"{len(HISTORY)} kinds of request with a full disk, then a page more each time: {victim.refusals} refused, "
            f"each undone and told; {len(HISTORY)} kills without room"
        )


@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_some_points_with_a_full_disk(firewall, figure):
    figure(_killed(firewall, stride=61))


@pytest.mark.soak
@pytest.mark.parametrize("firewall", BACKENDS)
def test_killed_at_more_points_with_a_full_disk(firewall, figure):
    figure(_killed(firewall, stride=13))


def _killed(firewall, stride):
    with ExitStack() as stack:
        victim = Killed(stack, firewall, LATE)
        kill_at_points(victim, stride)
    return f"killed at {victim.kills} points of {len(HISTORY)} kinds of request with a full disk, one in {stride}"


# --- read-only


@pytest.fixture(params=BACKENDS)
def victim(request):
    """Half a history has been played."""
    with ExitStack() as stack:
        made = Tried(stack, request.param)
        made.play(list(HISTORY.items())[: len(HISTORY) // 2])
        yield made
        made.nothing_to_heal()


def does_not_start(victim, words):
    """One line says what is wrong, and nothing is touched."""
    before, told = host_of(victim.sandbox), len(victim.daemon.log())
    victim.daemon.launch()
    assert victim.daemon.exit_code() == 1
    (line,) = victim.daemon.log()[told:].splitlines()
    assert line.startswith("bridgehead: ")
    assert words in line
    assert before.difference(host_of(victim.sandbox)) == ""


def starts(victim, before):
    victim.daemon.start()
    assert view(victim.api) == before[0]
    assert identities(victim.api) == before[1]
    victim.host_becomes(before[2])


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_no_start_on_a_read_only_disk(victim, end):
    before = victim.state()
    getattr(victim.daemon, end)()
    with victim.disk.read_only():
        does_not_start(victim, "Read-only file system")
    starts(victim, before)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_no_start_with_a_database_that_nobody_may_write(victim, end):
    before = victim.state()
    getattr(victim.daemon, end)()
    with victim.disk.immutable("bridgehead.db"):
        does_not_start(victim, "Operation not permitted")
    starts(victim, before)


def test_no_start_on_a_full_disk(victim):
    before = victim.state()
    victim.daemon.stop()
    victim.disk.leave(0)
    does_not_start(victim, "cannot be used")
    victim.disk.leave(PLENTY)
    starts(victim, before)


def test_back_on_a_full_disk(victim):
    """After a crash the log is there, and suffices: what is damaged is healed, and changes are refused."""
    before = victim.state()
    victim.daemon.kill()
    victim.disk.leave(0)
    victim.sandbox.host.exec(["ip", "link", "delete", "web"])
    victim.daemon.launch()
    eventually(lambda: reconciled(victim.api), what="the first full pass")
    assert not is_ready(victim.api)
    assert (view(victim.api), identities(victim.api)) == before[:2]
    victim.is_refused(victim.api.post("/networks", json={"name": "more"}), before)
    victim.disk.leave(PLENTY)
    assert is_ready(victim.api)


def reconciled(api):
    try:
        return api.get("/readyz").json()["reconciled"]
    except httpx.TransportError:
        return False


def test_a_disk_that_refuses_to_be_written(victim):
    """As one that the kernel has made read-only after an error: open files are no exception."""
    for name, step in list(HISTORY.items())[len(HISTORY) // 2 :]:
        before = victim.state()
        with noted(victim, name):
            with writes_refused(victim.daemon.pid):
                victim.is_refused(step(victim.api), before)
                assert not is_ready(victim.api)
                assert victim.api.get("/export").is_success
            assert is_ready(victim.api)
            assert step(victim.api).is_success


def test_a_database_that_nobody_may_open_to_write(victim):
    """The daemon has it open: it may go on, and what it acknowledges is there."""
    steps = list(HISTORY.items())[len(HISTORY) // 2 :]
    with victim.disk.immutable("bridgehead.db"):
        victim.play(steps[:3])
        before = victim.state()
        victim.daemon.kill()
        does_not_start(victim, "Operation not permitted")
    starts(victim, before)
    victim.play(steps[3:])
