"""What the kernel refuses: the answer says so, and nothing is left; and what a restart finds."""

import errno
from ipaddress import ip_interface

import pytest

from app.model.errors import KernelRefused
from app.model.state import Attachment, Bridge, DefaultRoute, HostPort, Netns, Sysctl


def kind(wanted, *, removing=False):
    return lambda op: isinstance(op.item, wanted) and (op.after is None) is removing


def refuse(api, item, *, removing=False):
    asked = f"the {item.__name__} in question"
    api.kernel.refuse(kind(item, removing=removing), KernelRefused(errno.EPERM, asked))
    return asked


def refused(api, method, path, body, asked):
    problem = api.refused(method, path, body, 502, "kernel_refused", "EPERM", asked)
    assert problem["errno"] == errno.EPERM
    assert problem["asked"] == asked


@pytest.fixture
def busy(api):
    api.network()
    api.network("db", gateway=None)
    api.endpoint()
    return api


@pytest.mark.parametrize("item", [Bridge, Sysctl])
def test_a_network_is_made_whole_or_not_at_all(api, item):
    asked = refuse(api, item)
    refused(api, "POST", "/networks", {"name": "web"}, asked)
    api.kernel.relent()
    api.network()


@pytest.mark.parametrize("item", [Netns, Attachment, DefaultRoute])
def test_an_endpoint_is_made_whole_or_not_at_all(api, item):
    api.network()
    asked = refuse(api, item)
    refused(api, "POST", "/endpoints", {"network": "web", "namespace": "red"}, asked)
    api.kernel.relent()
    assert api.endpoint()["address"] == "192.168.15.2"


@pytest.mark.parametrize("item", [HostPort, Sysctl])
def test_a_mapping_is_made_whole_or_not_at_all(busy, item):
    asked = refuse(busy, item)
    refused(busy, "POST", "/portmaps", {"endpoint": "red", "host_port": 80}, asked)
    busy.kernel.relent()
    busy.portmap(host_port=80)


@pytest.mark.parametrize("item", [Bridge, Attachment, DefaultRoute])
def test_a_patch_is_done_whole_or_not_at_all(busy, item):
    busy.endpoint("blue")
    asked = refuse(busy, item)
    body = {"gateway": "192.168.15.200", "mtu": 1300}
    refused(busy, "PATCH", "/networks/web", body, asked)
    busy.kernel.relent()
    busy.patch("/networks/web", **body)


def test_a_gateway_refused_leaves_the_network_without(busy):
    busy.endpoint("blue", network="db")
    asked = refuse(busy, DefaultRoute)
    refused(busy, "PATCH", "/networks/db", {"gateway": "192.168.16.9"}, asked)


def test_somebody_takes_the_name_in_between(api):
    api.kernel.add_link("x")
    api.kernel.link_exists = lambda _name: False
    problem = api.refused("POST", "/networks", {"name": "x"}, 502, "kernel_refused", "EEXIST")
    assert problem["asked"].startswith("ip link add x ")
    assert api.kernel.host.links["x"].kind == "dummy"


def test_what_would_not_go_is_still_there(busy):
    refuse(busy, Attachment, removing=True)
    answer = busy.client.delete("/endpoints/red")
    assert (answer.status_code, answer.json()["code"]) == (502, "kernel_refused")
    busy.settle()
    assert busy.get("/endpoints/red")["status"]["state"] == "ready"
    assert busy.endpoint("blue")["address"] == "192.168.15.3"
    busy.kernel.relent()
    busy.delete("/endpoints/red")
    assert "red" not in busy.kernel.names


def test_together_one_refused_does_not_hold_up_the_others(api):
    api.network()
    api.kernel.refuse(lambda op: isinstance(op.item, Netns) and op.item.name == "n3" and op.after is not None)
    bodies = [{"network": "web", "namespace": f"n{number}"} for number in range(20)]
    answers = api.client.gather(*(("POST", "/endpoints", body) for body in bodies))
    assert [answer.status_code for answer in answers] == [502 if number == 3 else 201 for number in range(20)]
    addresses = [answer.json()["address"] for answer in answers if answer.status_code == 201]
    assert len(set(addresses)) == 19
    assert set(api.kernel.names) == {f"n{number}" for number in range(20) if number != 3}
    assert len(api.get("/endpoints")) == 19


def test_together_one_address_goes_to_one(api):
    api.network()
    bodies = [{"network": "web", "namespace": f"n{number}", "address": "192.168.15.9"} for number in range(8)]
    answers = api.client.gather(*(("POST", "/endpoints", body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert len(api.kernel.names) == 1


def test_a_restart_finds_everything_as_it_is(busy, make_api):
    busy.portmap(host_port=8080)
    before = busy.state()
    busy.close()
    log = len(busy.kernel.log)
    again = make_api()
    assert again.state()[2] == before[2]
    assert [type(op.item) for op in busy.kernel.log[log:]] == [HostPort]
    assert [one["name"] for one in again.get("/networks")] == ["web", "db"]


def test_a_restart_on_a_fresh_kernel_builds_everything(busy, make_api, kernel):
    from harness import make_kernel

    busy.portmap(host_port=8080)
    before = busy.kernel.snapshot()
    busy.close()
    again = make_api(on=make_kernel())
    assert again.kernel is not kernel
    assert [line for line in again.kernel.snapshot().splitlines() if line[:5] != "netns"] == [
        line for line in before.splitlines() if line[:5] != "netns"
    ]
    assert set(again.kernel.names) == {"red"}


def test_a_restart_removes_leftovers_and_nothing_else(busy, make_api):
    busy.close()
    busy.kernel.add_link("left0", owner="00000000-dead")
    busy.kernel.add_link("theirs0", ip_interface("10.9.9.9/24"))
    busy.kernel.add_namespace("left").owner = "00000000-dead"
    busy.kernel.add_namespace("theirs")
    make_api()
    assert "left0" not in busy.kernel.host.links
    assert "theirs0" in busy.kernel.host.links
    assert set(busy.kernel.names) == {"red", "theirs"}


def test_a_restart_heals_half_of_it(busy, make_api):
    before = busy.kernel.snapshot()
    busy.close()
    busy.kernel.host.links["web"].up = False
    busy.kernel.host.links["web"].mtu = 1280
    busy.kernel.names["red"].links["eth0"].addresses.clear()
    busy.kernel.names["red"].routes.clear()
    busy.kernel.sysctls["net/ipv4/ip_forward"] = "0"
    make_api()
    assert busy.kernel.snapshot() == before


def test_a_port_lost_to_a_process_is_told_by_the_status(busy, make_api):
    from ipaddress import ip_address

    from app.model.spec import Protocol

    made = busy.portmap(host_port=8080)
    busy.close()
    busy.kernel.hold_port(Protocol.TCP, ip_address("0.0.0.0"), 8080, "process 'nginx' (pid 7)")
    status = make_api().get(f"/portmaps/{made['id']}")["status"]
    assert status["state"] == "failed"
    assert "process 'nginx' (pid 7)" in status["message"]
