"""Sandboxes and daemons for tests.

To vary one, override the fixture of that name: `@pytest.mark.parametrize("bridge_nf", [False, True])` on a test,
or `pytestmark` in a module.
"""

import pytest

from app.sandbox import LAUNCHER, Sandbox, machine_view, snapshot


@pytest.fixture(scope="session", autouse=True)
def _zygote():
    """Its imports run beside the first tests."""
    LAUNCHER.warm_up()
    yield
    LAUNCHER.shut_down()


@pytest.fixture
def forward_policy() -> str:
    """FORWARD's policy on the host, "ACCEPT" for tables that nobody has touched."""
    return "DROP"


@pytest.fixture
def bridge_nf() -> bool | None:
    """Whether iptables sees bridged packets on the host; None: as the kernel has it."""
    return None


@pytest.fixture
def rp_filter() -> int:
    return 0


@pytest.fixture
def ipv6() -> bool:
    return False


@pytest.fixture
def firewall() -> str:
    """The daemon's backend."""
    return "iptables"


@pytest.fixture
def daemon_options() -> dict:
    """Further options of Daemon: listen, pool, command, values."""
    return {}


@pytest.fixture
def sandbox(forward_policy, bridge_nf, rp_filter, ipv6):
    """A fresh sandbox; the machine's own namespace is the same after it."""
    before = machine_view()
    with Sandbox(forward=forward_policy, bridge_nf=bridge_nf, rp_filter=rp_filter, ipv6=ipv6) as made:
        yield made
    after = machine_view()
    assert after == before, (
        f"the machine's own namespace changed: gone {set(before) - set(after)}, new {set(after) - set(before)}"
    )


class Baseline:
    """What the host must look like again once the daemon has deleted everything."""

    def __init__(self, sandbox) -> None:
        self._sandbox = sandbox
        self.snapshot = None
        self.take()

    def take(self) -> None:
        """For a test that changes the host by hand after the daemon's start, while the daemon has nothing there."""
        self.snapshot = snapshot(self._sandbox)

    def forget(self) -> None:
        """For a test after which nothing can be compared."""
        self.snapshot = None

    def difference(self, ignore_ports=frozenset()) -> str:
        """Empty where the host is as it was."""
        return self.snapshot.difference(snapshot(self._sandbox, ignore_ports))


@pytest.fixture
def baseline(sandbox):
    return Baseline(sandbox)


@pytest.fixture
def daemon(sandbox, baseline, firewall, daemon_options, passed):
    """A daemon that is ready; once it has deleted everything, its host is as it was before its start."""
    made = sandbox.daemon(firewall=firewall, **daemon_options)
    try:
        made.start()
        yield made
        if passed() and baseline.snapshot is not None:
            _leaves_nothing(made, baseline)
        made.stop()
    finally:
        print(made.log())  # captured: shown with a failure


def _leaves_nothing(daemon, baseline) -> None:
    if not daemon.running:
        daemon.start()
    for network in daemon.client.get("/networks", params={"limit": 1000}).raise_for_status().json():
        answer = daemon.client.delete(f"/networks/{network['id']}", params={"force": "true"})
        assert answer.status_code == 204, answer.text
    listen = str(daemon.values["listen"]).rpartition(":")[2]
    difference = baseline.difference(frozenset({int(listen)} if listen else ()))
    assert not difference, f"with everything deleted, the host is not as before:\n{difference}"


@pytest.fixture
def api(daemon):
    """An httpx.Client of the daemon."""
    return daemon.client
