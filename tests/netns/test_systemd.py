"""The shipped unit under a real systemd, PID 1 of namespaces of its own; skipped where none is installed."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.host.privileges import NEEDED
from app.sandbox import eventually

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "bridgehead.service"
SYSTEMD = Path("/lib/systemd/systemd")
TARGETS = ("sysinit", "basic", "shutdown", "umount", "network-pre", "network-online")
WATCHDOG = 2
CHOWN = 1 << 0

pytestmark = pytest.mark.skipif(not SYSTEMD.exists(), reason="systemd is not installed")

_OUTSIDE = """
set -e
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$1/cgroup"
place="$1/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)/bridgehead-test-$$"
mkdir "$place"
echo $$ > "$place/cgroup.procs"
umount "$1/cgroup"
exec unshare --pid --net --uts --ipc --cgroup --mount --fork --kill-child sh -c "$2" boot "$1" "$3"
"""
_INSIDE = """
set -e
mount -o remount,bind,ro /
for place in /run /var/lib; do mount -t tmpfs -o mode=755 tmpfs $place; done
mkdir -p /run/units /run/systemd
cp -r "$1/units/." /run/units
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ip link set lo up
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=other SYSTEMD_UNIT_PATH=/run/units "$2" --unit=test.target
"""
_CLEAN = """
mount --make-rprivate /
mount -t cgroup2 cgroup2 "$1/cgroup"
own=$(find "$1/cgroup" -type d -name "bridgehead-test-$2")
find $own -depth -type d -exec rmdir {} +
"""


class Machine:
    """What runs there. pid: systemd's, as the machine numbers it."""

    def __init__(self, pid):
        self.pid = pid
        self.root = Path(f"/proc/{pid}/root")
        self.api = httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.root / "run/bridgehead/api.sock")), base_url="http://bridgehead"
        )

    def run(self, *command, check=True):
        entered = ["nsenter", "-t", str(self.pid), "-m", "-p", "-n", "-C", "--", *command]
        return subprocess.run(entered, check=check, capture_output=True, text=True, timeout=30).stdout

    def show(self, name):
        return self.run("systemctl", "show", "--value", "-p", name, "bridgehead").strip()

    def daemon(self):
        """Its pid, as the machine numbers it."""
        inner = self.show("MainPID")
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            if status(child)["NSpid"].split()[-1] == inner:
                return int(child)
        return 0

    def is_up(self):
        return self.show("ActiveState") == "active"


def status(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def units(place):
    """The shipped unit, started from this checkout; a watchdog that a test can wait for; a target that wants it."""
    place.mkdir()
    (place / "bridgehead.service").write_bytes(UNIT.read_bytes())
    command = f"{sys.executable} -B -m app.cli serve --firewall none"
    (place / "bridgehead.service.d").mkdir()
    (place / "bridgehead.service.d" / "test.conf").write_text(
        f"[Service]\nExecStart=\nExecStart={command}\nEnvironment=PYTHONPATH={ROOT}\nWatchdogSec={WATCHDOG}\n"
    )
    (place / "test.target").write_text("[Unit]\nRequires=basic.target\nWants=bridgehead.service\n")
    for name in TARGETS:
        target = SYSTEMD.parent / "system" / f"{name}.target"
        (place / target.name).write_bytes(target.read_bytes())


@contextmanager
def booted(place):
    units(place / "units")
    (place / "cgroup").mkdir()
    shell = ["unshare", "--mount", "sh", "-c"]
    command = [*shell, _OUTSIDE, "boot", str(place), _INSIDE, str(SYSTEMD)]
    with open(place / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

        def first():
            if process.poll() is not None:
                pytest.skip(f"no systemd can be booted here: {(place / 'log').read_text()[-500:]}")
            pids = children.read_text().split()
            return pids and status(pids[0])["Name"] == "systemd" and int(pids[0])

        machine = Machine(eventually(first, 10))
        yield machine
        machine.api.close()
    finally:
        process.kill()
        process.wait()
        eventually(
            lambda: not subprocess.run([*shell, _CLEAN, "clean", str(place), str(process.pid)], check=False).returncode
        )


@pytest.fixture
def machine(tmp_path):
    with booted(tmp_path) as made:
        eventually(lambda: made.run("systemctl", "is-active", "bridgehead", check=False) == "active\n", 20)
        yield made


def test_the_shipped_unit_under_a_real_systemd(machine):
    """Ready by notification, confined as it says, watched, restarted without loss, stopped."""
    assert machine.show("Type") == "notify"
    assert machine.show("StatusText") == "0 networks, 0 endpoints, 0 ports; none"
    kept, first = status(machine.daemon()), machine.daemon()
    needed = sum(1 << number for number in NEEDED.values())
    assert (kept["NoNewPrivs"], kept["Seccomp"]) == ("1", "2")
    assert int(kept["CapEff"], 16) == needed
    assert int(kept["CapBnd"], 16) == needed | CHOWN  # for the socket's group, until it is bound
    assert machine.api.post("/networks", json={"name": "web"}).status_code == 201
    assert machine.api.post("/endpoints", json={"network": "web", "namespace": "red"}).status_code == 201
    assert machine.run("ip", "netns").split()[0] == "red"  # the host sees the names that it makes
    assert (machine.root / "var/lib/bridgehead").stat().st_mode & 0o777 == 0o700

    os.kill(first, signal.SIGSTOP)  # the event loop says nothing any more
    eventually(lambda: machine.show("NRestarts") == "1" and machine.is_up(), 10 * WATCHDOG)
    assert machine.daemon() != first
    assert "web" in machine.run("ip", "-br", "link")
    answer = machine.api.get("/endpoints/red").json()
    assert answer["status"]["state"] == "ready"

    machine.run("systemctl", "stop", "bridgehead")
    assert (machine.show("ActiveState"), machine.show("Result")) == ("inactive", "success")
    assert "web" in machine.run("ip", "-br", "link")
