"""Bad input that only a kernel shows: a clear problem document, and nothing changed."""

import os
import resource
import socket
from ipaddress import ip_interface

import httpx
import pytest
from world import endpoint, everything, network, portmap, refused

from app.sandbox import CLIENT, HOST, HOST_SECOND, snapshot


@pytest.fixture
def unchanged(sandbox, api):
    """A POST or PATCH that is refused and changes neither kernel nor answers."""

    def check(path, body, status, code, *words, method="POST"):
        before, shown = snapshot(sandbox), everything(api)
        problem = refused(api.request(method, f"/{path}", json=body), status, code, *words)
        assert before.difference(snapshot(sandbox)) == ""
        assert everything(api) == shown
        return problem

    return check


@pytest.fixture
def red(sandbox, api):
    network(api, "web")
    endpoint(api, "red")
    return sandbox.netns("red")


# --- ports


@pytest.mark.parametrize("held", ["0.0.0.0", "127.0.0.1", HOST])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_port_that_a_process_holds(sandbox, red, unchanged, protocol, held):
    server = sandbox.host.tcp_server if protocol == "tcp" else sandbox.host.udp_server
    with server(8080, held):
        body = {"endpoint": "red", "host_port": 8080, "protocol": protocol}
        unchanged("portmaps", body, 409, "port_taken", "8080", f"(pid {os.getpid()})")


def test_a_port_that_another_process_holds_is_told_by_its_name(sandbox, red, unchanged):
    program = "import socket,sys; s=socket.socket(); s.bind(('', 8080)); s.listen(); sys.stdin.read()"
    process = sandbox.host.spawn(["python3", "-c", program])
    try:
        while sandbox.host.tcp("127.0.0.1", 8080, timeout=0.02) is None and not isinstance(
            sandbox.host.failure, TimeoutError
        ):
            assert process.poll() is None
        body = {"endpoint": "red", "host_port": 8080}
        unchanged("portmaps", body, 409, "port_taken", "'python3'", f"(pid {process.pid})")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("ipv6", [True])
def test_a_port_that_a_process_holds_on_both_families(sandbox, baseline, red, unchanged):
    """A listener on :: takes IPv4 connections too."""
    baseline.forget()
    with sandbox.host.open_socket(socket.AF_INET6, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 8080))
        listener.listen()
        unchanged("portmaps", {"endpoint": "red", "host_port": 8080}, 409, "port_taken", f"(pid {os.getpid()})")


def test_a_port_held_on_another_address_is_free(sandbox, api, red):
    with sandbox.host.tcp_server(8080, HOST), red.tcp_server(80):
        portmap(api, "red", 8080, host_ip=HOST_SECOND, target_port=80)
        assert sandbox.client.tcp(HOST, 8080) == b"host\n"
        assert sandbox.client.tcp(HOST_SECOND, 8080) == b"red\n"


def test_a_port_moved_to_one_that_a_process_holds(sandbox, api, red, unchanged):
    mapping = portmap(api, "red", 8080, target_port=80)
    with sandbox.host.tcp_server(9090), red.tcp_server(80):
        unchanged(f"portmaps/{mapping['id']}", {"host_port": 9090}, 409, "port_taken", os.getpid(), method="PATCH")
        assert sandbox.client.tcp(HOST, 8080) == b"red\n"
        assert sandbox.client.tcp(HOST, 9090) == b"host\n"


def test_an_automatic_port_skips_what_processes_hold(sandbox, api, red):
    with sandbox.host.tcp_server(49153):
        answer = api.post("/portmaps", json={"endpoint": "red"})
        assert answer.json()["host_port"] == 49154


def test_a_published_port_is_no_longer_a_processes(sandbox, api, red):
    portmap(api, "red", 8080)
    portmap(api, "red", 53, protocol="udp")
    with pytest.raises(OSError, match="in use"):
        sandbox.host.tcp_server(8080)
    with pytest.raises(OSError, match="in use"):
        sandbox.host.udp_server(53, HOST)


def test_published_ports_leave_the_daemon_its_descriptors(daemon, api, red, unchanged):
    """Without any left nobody could connect, not even to take the mapping back."""
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (900, 900))
    unchanged("portmaps", {"endpoint": "red", "host_port": "2000-2560"}, 409, "too_many_ports", "900")
    portmap(api, "red", "2000-2300", protocol="udp")
    unchanged("portmaps", {"endpoint": "red", "host_port": "2000-2100"}, 409, "too_many_ports", "900")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(daemon.socket)), base_url="http://bridgehead") as other:
        assert other.get("/readyz").status_code == 200


@pytest.mark.parametrize("host_ip", [CLIENT, "192.168.15.2", "8.8.8.8"])
def test_a_host_ip_that_is_not_the_hosts(red, unchanged, host_ip):
    unchanged("portmaps", {"endpoint": "red", "host_port": 8080, "host_ip": host_ip}, 422, "invalid", host_ip)


# --- interfaces and subnets


@pytest.mark.parametrize("bridge", ["docker0", "v-inner", "eth0"])
def test_a_bridge_name_that_somebody_elses_interface_has(sandbox, baseline, daemon, unchanged, bridge):
    sandbox.host.add_bridge("docker0")
    sandbox.host.add_veth("v-inner", "eth0", sandbox.add_netns("inner"))
    baseline.take()
    unchanged("networks", {"name": "web", "bridge": bridge}, 409, "interface_exists", bridge)


def test_a_network_name_that_somebody_elses_interface_has(sandbox, baseline, daemon, api):
    sandbox.host.add_bridge("docker0")
    baseline.take()
    before = sandbox.host.links()["docker0"]
    made = network(api, "docker0")
    assert made["bridge"].startswith("bh-")
    assert sandbox.host.links()["docker0"] == before


@pytest.mark.parametrize("host_ifname", ["eth0", "web"])
def test_a_host_ifname_that_is_taken(red, unchanged, host_ifname):
    body = {"network": "web", "namespace": "blue", "host_ifname": host_ifname}
    unchanged("endpoints", body, 409, "interface_exists", host_ifname)


def test_an_ifname_that_exists_in_the_namespace(sandbox, baseline, daemon, api, unchanged):
    red = sandbox.add_netns("red")
    red.add_bridge("mine")
    baseline.take()
    network(api, "web")
    body = {"network": "web", "namespace": "red", "ifname": "mine"}
    unchanged("endpoints", body, 409, "interface_exists", "mine", "red")


@pytest.mark.parametrize("subnet", ["203.0.113.0/24", "203.0.113.128/25", "203.0.112.0/20", "10.9.4.0/24"])
def test_a_subnet_that_overlaps_a_route_of_the_host(sandbox, baseline, daemon, unchanged, subnet):
    sandbox.host.exec(["ip", "route", "add", "10.9.0.0/16", "via", "203.0.113.1"])
    baseline.take()
    route = "10.9.0.0/16" if subnet.startswith("10.") else "203.0.113.0/24"
    unchanged("networks", {"name": "web", "subnet": subnet}, 409, "subnet_overlap", subnet, route, "eth0")


def test_an_automatic_subnet_skips_the_hosts_routes(sandbox, baseline, daemon, api):
    sandbox.host.add_bridge("mine")
    sandbox.host.add_address("mine", ip_interface("192.168.15.1/25"))
    baseline.take()
    assert network(api, "web")["subnet"] == "192.168.16.0/24"


# --- namespaces


@pytest.mark.parametrize("by", ["pid", "netns"])
def test_the_hosts_own_namespace_is_refused(daemon, api, unchanged, by):
    network(api, "web")
    body = {"pid": daemon.pid} if by == "pid" else {"netns": f"/proc/{daemon.pid}/ns/net"}
    unchanged("endpoints", {"network": "web", **body}, 422, "invalid", "host")


def test_the_hosts_own_namespace_under_a_name_is_refused(sandbox, daemon, api, unchanged):
    network(api, "web")
    sandbox.host.exec(["ip", "netns", "attach", "myself", str(daemon.pid)])
    unchanged("endpoints", {"network": "web", "namespace": "myself"}, 422, "invalid", "host")
    sandbox.delete_netns("myself")


def test_a_fifo_as_path_is_refused_at_once(sandbox, api, unchanged):
    network(api, "web")
    fifo = sandbox.directory / "fifo"
    os.mkfifo(fifo)
    unchanged("endpoints", {"network": "web", "netns": str(fifo)}, 404, "namespace_missing", fifo)


@pytest.mark.parametrize("what", ["file", "directory", "socket", "another kind of namespace", "device"])
def test_a_path_that_is_no_network_namespace(sandbox, daemon, api, unchanged, what):
    network(api, "web")
    file = sandbox.directory / "file"
    file.touch()
    path = {
        "file": file,
        "directory": sandbox.directory,
        "socket": daemon.socket,
        "another kind of namespace": "/proc/self/ns/mnt",
        "device": "/dev/zero",
    }[what]
    unchanged("endpoints", {"network": "web", "netns": str(path)}, 404, "namespace_missing", path)


def test_a_name_that_is_a_plain_file(sandbox, api, unchanged):
    network(api, "web")
    sandbox.host.exec(["mkdir", "-p", "/run/netns"])
    sandbox.host.exec(["touch", "/run/netns/plain"])
    before = sandbox.host.exec(["ls", "/run/netns"]).stdout
    answer = api.post("/endpoints", json={"network": "web", "namespace": "plain"})
    refused(answer, 422, "invalid", "plain")
    assert sandbox.host.exec(["ls", "/run/netns"]).stdout == before
    sandbox.host.exec(["rm", "/run/netns/plain"])


@pytest.mark.parametrize("what", ["FIFO", "link to nowhere", "link to itself", "directory"])
def test_a_name_at_which_somebody_has_something_else(sandbox, api, unchanged, what):
    """A FIFO has no writer: reading it would never end."""
    network(api, "web")
    commands = {
        "FIFO": ["mkfifo", "/run/netns/odd"],
        "link to nowhere": ["ln", "-s", "/run/nothing", "/run/netns/odd"],
        "link to itself": ["ln", "-s", "odd", "/run/netns/odd"],
        "directory": ["mkdir", "/run/netns/odd"],
    }
    sandbox.host.exec(["mkdir", "-p", "/run/netns"])
    sandbox.host.exec(commands[what])
    answer = api.post("/endpoints", json={"network": "web", "namespace": "odd"}, timeout=5.0)
    refused(answer, 422, "invalid", "odd")
    assert sandbox.host.exec(["ls", "/run/netns"]).stdout == "odd\n"
    sandbox.host.exec(["rm", "-r", "/run/netns/odd"])


def test_a_fifo_among_the_namespaces_keeps_no_daemon_from_starting(sandbox, daemon, api):
    sandbox.host.exec(["mkdir", "-p", "/run/netns"])
    sandbox.host.exec(["mkfifo", "/run/netns/odd"])
    daemon.restart()
    sandbox.host.exec(["rm", "/run/netns/odd"])


@pytest.mark.parametrize("body", [{"netns": "/run/nothing"}, {"netns": "/proc/4194303/ns/net"}, {"pid": 4194303}])
def test_a_namespace_that_is_not_there(api, unchanged, body):
    network(api, "web")
    unchanged("endpoints", {"network": "web", **body}, 404, "namespace_missing", next(iter(body.values())))
