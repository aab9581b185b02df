"""/endpoints: what it makes, and its defaults."""

from ipaddress import ip_interface

import pytest

from app.kernel.fake import Namespace


@pytest.fixture
def api(api):
    api.network()
    return api


def test_a_bare_body_has_the_contract_s_defaults(api):
    answer = api.client.post("/endpoints", json={"network": "web", "namespace": "red"})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/endpoints/{made['id']}"
    wanted = {
        "name": "red",
        "network": api.get("/networks/web")["id"],
        "network_name": "web",
        "namespace": "red",
        "pid": None,
        "netns": None,
        "address": "192.168.15.2",
        "prefix_len": 24,
        "gateway": "192.168.15.1",
        "address6": None,
        "prefix_len6": None,
        "gateway6": None,
        "ifname": "eth0",
        "default_route": None,
        "labels": {},
    }
    assert wanted.items() <= made.items()
    assert made["status"]["state"] == "ready"
    assert len(made["host_ifname"]) == 14
    assert made["host_ifname"].startswith("veth")
    assert int(made["mac"][:2], 16) & 3 == 2
    outer, red = api.kernel.host.links[made["host_ifname"]], api.kernel.names["red"]
    assert (outer.master, outer.owner, outer.mtu, outer.up) == ("web", made["id"], 1400, True)
    assert red.links["eth0"].addresses == {ip_interface("192.168.15.2/24")}
    assert red.links["eth0"].mac == made["mac"]
    assert str(red.routes[4].via) == "192.168.15.1"
    assert red.owner


def test_addresses_go_round_robin(api):
    assert [api.endpoint(name)["address"][11:] for name in ("a", "b")] == ["2", "3"]
    api.delete("/endpoints/a")
    assert api.endpoint("c")["address"][11:] == "4"
    assert api.endpoint("d", address="192.168.15.250")["address"][11:] == "250"
    assert api.endpoint("e")["address"][11:] == "5"


def test_round_robin_comes_back_to_what_was_freed(api):
    api.network("small", subnet="10.0.0.0/29")
    held = [api.endpoint(f"n{number}", network="small")["address"] for number in range(5)]
    assert held == [f"10.0.0.{number}" for number in range(2, 7)]
    body = {"network": "small", "namespace": "more"}
    api.refused("POST", "/endpoints", body, 409, "pool_exhausted", "10.0.0.0/29", "small")
    api.delete("/endpoints/n1")
    assert api.endpoint("more", network="small")["address"] == "10.0.0.3"


def test_only_default_names_are_numbered(api):
    made = [api.endpoint() for _number in range(3)]
    assert [one["name"] for one in made] == ["red", "red-2", "red-3"]
    assert [one["ifname"] for one in made] == ["eth0", "eth1", "eth2"]
    body = {"network": "web", "namespace": "blue", "name": "red"}
    api.refused("POST", "/endpoints", body, 409, "name_taken", "red")


def test_a_long_default_name_is_numbered_within_its_length(api):
    name = "n" * 63
    assert [api.endpoint(name)["name"] for _number in range(2)] == [name, "n" * 56 + "-2"]


def test_ifnames_skip_what_the_namespace_has(api):
    api.kernel.add_namespace("red", "eth0", "eth2")
    assert [api.endpoint()["ifname"] for _number in range(2)] == ["eth1", "eth3"]


def test_a_foreign_namespace_stays(api):
    api.kernel.add_namespace("red", "eth0")
    api.endpoint(create_namespace=False)
    api.delete("/endpoints/red")
    assert set(api.kernel.names["red"].links) == {"lo", "eth0"}


def test_a_namespace_of_ours_goes_with_its_last_endpoint(api):
    before = api.state()
    api.endpoint()
    api.endpoint()
    api.delete("/endpoints/red")
    assert "red" in api.kernel.names
    api.delete("/endpoints/red-2")
    assert "red" not in api.kernel.names
    assert api.state()[2] == before[2]


def test_by_process_and_path(api):
    netns = Namespace()
    api.kernel.add_process(4242, netns)
    api.kernel.paths["/proc/4242/ns/net"] = netns
    first = api.post("/endpoints", network="web", pid=4242)
    assert (first["pid"], first["namespace"], first["netns"]) == (4242, None, None)
    assert first["name"].startswith("ep-")
    assert len(first["name"]) == 11
    second = api.post("/endpoints", network="web", netns="/proc/4242/ns/net")
    assert (second["netns"], second["ifname"]) == ("/proc/4242/ns/net", "eth1")
    assert len(api.kernel.processes[4242][1].links) == 3


def test_a_path_to_a_name_is_that_name(api):
    api.kernel.add_namespace("red")
    assert api.post("/endpoints", network="web", netns="/var/run/netns/red")["namespace"] == "red"
    assert api.post("/endpoints", network="web", netns="/run/netns/red")["ifname"] == "eth1"


def test_given_values_are_taken(api):
    made = api.endpoint(
        name="one", address="192.168.15.77", mac="02:AB:00:00:00:01", ifname="in0", host_ifname="out0", labels={"a": ""}
    )
    wanted = {"name": "one", "address": "192.168.15.77", "mac": "02:ab:00:00:00:01", "labels": {"a": ""}}
    assert wanted.items() <= made.items()
    assert "out0" in api.kernel.host.links
    assert "in0" in api.kernel.names["red"].links


def test_lists_are_filtered(api):
    api.network("db")
    api.endpoint(labels={"a": "b"})
    api.endpoint("blue")
    api.endpoint("red", network="db")

    def names(query):
        return [one["name"] for one in api.get(f"/endpoints?{query}")]

    assert names("") == ["red", "blue", "red-2"]
    assert names("network=db") == ["red-2"]
    assert names("namespace=red") == ["red", "red-2"]
    assert names("namespace=red&network=web") == ["red"]
    assert names("label=a=b") == ["red"]
    assert names("limit=1") == ["red"]
    api.refused("GET", "/endpoints?network=nope", None, 404, "not_found", "nope")


def test_the_oldest_has_the_default_route_and_true_takes_it(api):
    api.network("db")
    first, second = api.endpoint(), api.endpoint(network="db")
    routes = api.kernel.names["red"].routes
    assert str(routes[4].via) == first["gateway"]
    api.patch("/endpoints/red-2", default_route=True)
    assert str(routes[4].via) == second["gateway"]
    api.patch("/endpoints/red-2", default_route=False)
    assert str(routes[4].via) == first["gateway"]
    api.delete("/endpoints/red")
    assert api.kernel.names["red"].routes == {}
    api.patch("/endpoints/red-2", default_route=None)
    assert str(api.kernel.names["red"].routes[4].via) == second["gateway"]


def test_the_default_route_passes_on_when_its_endpoint_goes(api):
    api.network("db")
    api.endpoint()
    second = api.endpoint(network="db")
    api.delete("/endpoints/red")
    assert str(api.kernel.names["red"].routes[4].via) == second["gateway"]


def test_a_foreign_default_route_is_left_alone(api):
    from ipaddress import ip_address

    from app.kernel.fakeworld import Route

    netns = api.kernel.add_namespace("red", "own0")
    netns.routes[4] = Route(ip_address("10.9.9.9"), "own0", ours=False)
    made = api.endpoint()
    assert str(netns.routes[4].via) == "10.9.9.9"
    assert made["status"]["state"] == "degraded"
    assert "default route" in made["status"]["message"]


def test_patch_name_and_labels(api):
    made = api.endpoint()
    changed = api.patch("/endpoints/red", name="rouge", labels={"x": "y"})
    assert (changed["name"], changed["labels"], changed["id"]) == ("rouge", {"x": "y"}, made["id"])
    assert changed["updated_at"] > made["updated_at"]
    api.refused("GET", "/endpoints/red", None, 404, "not_found", "red")
    assert api.get("/endpoints/rouge") == changed


def test_delete_with_mappings_is_refused_and_forced(api):
    before = api.kernel.snapshot()
    api.endpoint()
    api.portmap(host_port=8080)
    api.refused("DELETE", "/endpoints/red", None, 409, "endpoint_in_use", "red", "8080", "force")
    api.delete("/endpoints/red?force=true")
    assert api.kernel.snapshot() == before
    assert api.get("/portmaps") == []


def test_an_id_wins_over_a_name(api):
    first = api.endpoint("red")
    second = api.endpoint("blue", name=first["id"])
    assert api.get(f"/endpoints/{first['id']}")["name"] == "red"
    assert api.portmap(first["id"], host_port=80)["endpoint"] == first["id"]
    api.delete(f"/endpoints/{first['id']}?force=true")
    assert api.get(f"/endpoints/{first['id']}")["id"] == second["id"]


def test_the_1024th_port_of_a_bridge(api):
    made = api.network("big", subnet="10.0.0.0/16")
    api.endpoint(network="big")
    with api.engine.begin() as connection:
        row = dict(connection.exec_driver_sql("SELECT * FROM endpoint").mappings().one())
        for number in range(1022):
            del row["seq"]
            row |= {"id": f"i{number}", "name": f"n{number}", "ifname": f"e{number}", "host_ifname": f"h{number}"}
            row["seq"] = number + 100
            columns, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
            connection.exec_driver_sql(f"INSERT INTO endpoint ({columns}) VALUES ({marks})", row)
    api.reread()
    body = {"network": "big", "namespace": "more"}
    api.refused("POST", "/endpoints", body, 409, "bridge_full", "big", "1023")
    assert api.endpoint("elsewhere")["network"] != made["id"]
