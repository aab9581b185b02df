"""A daemon in a sandbox of its own, its state on a real disk, with as many objects of others as a row wants."""

import shutil
import tempfile
import time
import uuid
from contextlib import closing
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from app.sandbox import Sandbox
from bench.http import Client

SUBNET, GATEWAY, PREFIX = "10.20.0.0/16", "10.20.0.1", 16
FIRST_PORT = 20_000
_FIRST_ADDRESS = ip_address("10.20.1.0")
_READY_WITHIN = 300.0
_ASK = 0.02
"""Seconds from one look for readiness to the next."""
_SETTINGS = {"rate": 0}
"""One client sends more than the 1,000 requests a second that one may."""
SETTLE = 0.03
"""Seconds between samples: what one leaves to the kernel's own threads is not the next one's cost."""


def disk():
    """A directory where a commit reaches a disk; /tmp may be memory."""
    return Path(tempfile.mkdtemp(prefix="bridgehead-bench-", dir="/var/tmp"))


def filesystem(path):
    """The type of the filesystem that a path is on."""
    found, longest = "?", -1
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _dash, rest = line.partition(" - ")
        place = Path(mount.split()[4])
        if path.is_relative_to(place) and len(place.parts) >= longest:
            found, longest = rest.split()[0], len(place.parts)
    return found


class Site:
    """Opened within an ExitStack. endpoints, mappings: those of others, in network `web`, made by one import.

    forward: policy of iptables' FORWARD. start: whether the daemon runs once this is made. entry: what runs in place
    of the command, as `app.sandbox` has it.
    """

    def __init__(
        self, stack, firewall="nftables", *, endpoints=0, mappings=0, forward="ACCEPT", start=True, entry=None
    ):
        self.stack, self.forward = stack, forward
        self.directory = disk()
        stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.sandbox = stack.enter_context(Sandbox(forward=forward, directory=self.directory))
        how = {"command": True} if entry is None else {"entry": entry}
        self.daemon = self.sandbox.daemon(firewall=firewall, values=_SETTINGS, **how)
        self.client = stack.enter_context(closing(Client(self.daemon.socket)))
        self.took = 0.0
        """Seconds of the import."""
        if start:
            self.daemon.launch()
            self.daemon.wait_ready(_READY_WITHIN)
            self.populate(endpoints, mappings)

    def populate(self, endpoints, mappings):
        if endpoints or mappings:
            _answer, self.took = self.client.ask("POST", "/import", document(endpoints, mappings))
        else:
            self.client.ask("POST", "/networks", {"name": "web", "subnet": SUBNET})

    def move(self):
        """The daemon stopped, its state before an empty kernel: another sandbox, the same directory.

        The old one stays until the end: the kernel takes seconds to remove it, and would do so in what is measured.
        """
        self.daemon.stop()
        self.sandbox = self.stack.enter_context(Sandbox(forward=self.forward, directory=self.directory))
        firewall = self.daemon.values["firewall"]
        self.daemon = self.sandbox.daemon(command=True, firewall=firewall, values=_SETTINGS)

    def start(self):
        """Seconds from the start of the process until /readyz says yes. Raises TimeoutError."""
        start = time.perf_counter()
        self.daemon.launch()
        while time.perf_counter() - start < _READY_WITHIN:
            try:
                with closing(Client(self.daemon.socket)) as client:
                    client.ask("GET", "/readyz")
                return time.perf_counter() - start
            except (OSError, RuntimeError):
                if not self.daemon.running:
                    raise
                time.sleep(_ASK)  # each time takes the daemon a millisecond
        raise TimeoutError(f"the daemon was not ready within {_READY_WITHIN} s")


def document(endpoints, mappings):
    """What POST /import takes: endpoints n0, n1, ... (one at least), the mappings spread over them."""
    moment = datetime.now(UTC).isoformat()
    times = {"created_at": moment, "updated_at": moment}
    network = str(uuid.uuid4())
    ids = [str(uuid.uuid4()) for _number in range(max(endpoints, 1))]
    return {
        "version": 1,
        "networks": [
            {
                "id": network,
                "name": "web",
                "bridge": "web",
                "subnet": SUBNET,
                "gateway": GATEWAY,
                "ip_range": SUBNET,
                "mtu": 1500,
                **times,
            }
        ],
        "endpoints": [{**_endpoint(number, one, network), **times} for number, one in enumerate(ids)],
        "portmaps": [
            {
                "id": str(uuid.uuid4()),
                "endpoint": ids[number % len(ids)],
                "protocol": "tcp",
                "host_ip": "0.0.0.0",
                "host_port": FIRST_PORT + number,
                "target_port": 80,
                **times,
            }
            for number in range(mappings)
        ],
        "reservations": [],
    }


def _endpoint(number, identity, network):
    return {
        "id": identity,
        "name": f"n{number}",
        "network": network,
        "netns_kind": "name",
        "netns": f"n{number}",
        "namespace_key": f"name:n{number}",
        "create_namespace": True,
        "address": str(_FIRST_ADDRESS + number),
        "mac": f"02:20:00:00:{number >> 8:02x}:{number & 255:02x}",
        "ifname": "eth0",
        "host_ifname": f"veth{number:010x}",
    }
