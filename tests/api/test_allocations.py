"""/ipam and the system's own paths."""

import app


def test_pools_count(api):
    api.network(subnet="10.0.0.0/29")
    api.endpoint()
    api.post("/ipam/allocations", network="web", address="10.0.0.6")
    (pool,) = api.get("/ipam/pools")
    assert (pool["size"], pool["used"], pool["reserved"], pool["free"]) == (6, 1, 2, 3)
    assert (pool["network_name"], pool["subnet"]) == ("web", "10.0.0.0/29")


def test_a_reservation_holds_its_address(api):
    api.network()
    answer = api.client.post("/ipam/allocations", json={"network": "web", "note": "printer"})
    made = answer.json()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/ipam/allocations/{made['id']}"
    assert (made["address"], made["holder"]["kind"], made["note"]) == ("192.168.15.2", "reservation", "printer")
    assert api.get(f"/ipam/allocations/{made['id']}") == made
    body = {"network": "web", "namespace": "red", "address": "192.168.15.2"}
    api.refused("POST", "/endpoints", body, 409, "address_taken", "192.168.15.2", made["id"], "printer")
    api.delete(f"/ipam/allocations/{made['id']}")
    assert api.endpoint(address="192.168.15.2")["address"] == "192.168.15.2"


def test_allocations_tell_the_holders(api):
    network = api.network()
    api.network("db")
    endpoint = api.endpoint()
    held = api.get("/ipam/allocations?network=web")
    assert [(one["address"], one["holder"]["kind"], one["holder"]["name"]) for one in held] == [
        ("192.168.15.1", "gateway", "web"),
        ("192.168.15.2", "endpoint", "red"),
    ]
    assert [one["id"] for one in held] == [network["id"], endpoint["id"]]
    assert len(api.get("/ipam/allocations")) == 3
    assert len(api.get("/ipam/allocations?limit=1")) == 1


def test_an_address_in_use_is_no_reservation(api):
    network = api.network()
    endpoint = api.endpoint()
    path = "/ipam/allocations/"
    api.refused("DELETE", path + endpoint["id"], None, 409, "endpoint_in_use", "red", "192.168.15.2")
    api.refused("DELETE", path + network["id"], None, 409, "network_in_use", "web", "192.168.15.1")
    api.refused("DELETE", path + "nope", None, 404, "not_found", "nope")
    api.refused("GET", path + "nope", None, 404, "not_found", "nope")


def test_a_network_s_reservations_go_with_it(api):
    before = api.state()
    api.network()
    api.post("/ipam/allocations", network="web")
    api.delete("/networks/web")
    assert api.state() == before


def test_reservations_survive_a_restart(api, make_api):
    api.network()
    made = api.post("/ipam/allocations", network="web")
    api.close()
    again = make_api()
    assert again.get(f"/ipam/allocations/{made['id']}") == made
    again.delete(f"/ipam/allocations/{made['id']}")


def test_system(api):
    assert api.get("/healthz") == {"status": "ok"}
    assert api.get("/version") == {"version": app.__version__, "firewall": "none"}
    ready = api.client.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"ready": True, "reconciled": True, "worker": True, "database": True}


def test_not_ready_once_the_worker_has_stopped(api):
    api.close()
    ready = api.client.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["worker"] is False
    answer = api.client.post("/networks", json={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, "shutting_down")


def test_docs_need_nothing_from_elsewhere(api):
    page = api.client.get("/docs")
    assert page.status_code == 200
    assert "https://" not in page.text.replace("https://github.com", "")
    for name in ("swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"):
        assert f"/docs/{name}" in page.text
        assert api.client.get(f"/docs/{name}").status_code == 200
    api.refused("GET", "/docs/other.js", None, 404, "not_found", "/docs/other.js")
