"""The claim on a network namespace: one daemon's alone, and no user can take it away."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from app.sandbox import DaemonFailed
from app.sandbox.ns import Ns

_HOLD = """
import os, socket, sys
os.setuid(65534)
held = [socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_STREAM)]
for one, name in zip(held, sys.argv[1:]):
    one.bind("\\0" + name)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def nobody_holds(host: Ns, *names: str):
    """A process of an unprivileged user that has these names."""
    command = [sys.executable, "-S", "-c", _HOLD, *names]
    process = host.run(lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.communicate("")


def test_a_user_cannot_keep_a_daemon_from_starting(sandbox):
    first, second = (sandbox.daemon(name=name, firewall="none") for name in ("first", "second"))
    with nobody_holds(sandbox.host, "bridgehead", "bridgehead/1"):
        first.start()
        assert "is no daemon" in first.log()
        second.launch()
        assert second.exit_code() == 1
        assert "another daemon" in second.log()
    second.launch()
    assert second.exit_code() == 1
    first.stop()
    second.start()
    first.launch()
    assert first.exit_code() == 1
    second.stop()


def test_a_directory_of_somebody_s_is_left_as_it_is(sandbox):
    daemon = sandbox.daemon(firewall="none")
    daemon.state_dir.mkdir(mode=0o755)
    (daemon.state_dir / "theirs").write_text("x")
    daemon.launch()
    assert daemon.exit_code() == 1
    assert "holds other files, such as 'theirs'" in daemon.log()
    assert daemon.state_dir.stat().st_mode & 0o777 == 0o755
    assert [one.name for one in daemon.state_dir.iterdir()] == ["theirs"]
    daemon.state_dir.chmod(0o700)  # nobody is locked out
    daemon.start()
    daemon.stop()


def test_a_directory_that_is_its_own_is_closed(sandbox):
    daemon = sandbox.daemon(firewall="none")
    with daemon:
        (daemon.state_dir / "export.json").write_text("{}")
    daemon.state_dir.chmod(0o755)
    with daemon:
        assert daemon.state_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    ("url", "words"),
    [("nonsense", "is not an SQLAlchemy URL"), ("sqlite:////nowhere/a.db", "/nowhere is no directory")],
)
def test_a_wrong_database_is_found_before_anything_is_made(sandbox, url, words):
    daemon = sandbox.daemon(firewall="none", values={"database": url})
    daemon.launch()
    assert daemon.exit_code() == 1
    assert words in daemon.log()
    assert not daemon.state_dir.exists()


def test_a_name_beside_it_claims_nothing(sandbox):
    daemon = sandbox.daemon(firewall="none")
    with nobody_holds(sandbox.host, "bridgeheads", "bridgehead/2"):
        daemon.start()
        assert "is no daemon" not in daemon.log()
    daemon.stop()


def test_of_daemons_that_start_together_one_wins(sandbox):
    daemons = [sandbox.daemon(name=f"d{number}", firewall="none") for number in range(4)]
    for daemon in daemons:
        daemon.launch()
    winners = []
    for daemon in daemons:
        try:
            daemon.wait_ready()
            winners.append(daemon)
        except DaemonFailed:
            assert "another daemon" in daemon.log()
    assert len(winners) == 1
    winners[0].stop()
