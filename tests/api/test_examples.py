"""The examples of openapi.json work when they are sent, in the order that a reader meets them."""

import pytest
from harness import application


def examples(name):
    return application().openapi()["components"]["schemas"][name]["examples"]


@pytest.fixture
def ready(api):
    api.network("web")
    api.network("br0", subnet="10.0.0.0/24", gateway=None)
    api.endpoint()
    return api


@pytest.mark.parametrize("body", examples("NetworkCreate"))
def test_networks(api, body):
    assert body.items() <= api.post("/networks", **body).items()


@pytest.mark.parametrize("body", examples("NetworkPatch"))
def test_network_patches(api, body):
    api.network("web")
    assert body.items() <= api.patch("/networks/web", **body).items()


@pytest.mark.parametrize("body", examples("EndpointCreate"))
def test_endpoints(ready, body):
    made = ready.post("/endpoints", **body)
    assert {name: value for name, value in body.items() if name != "network"}.items() <= made.items()
    assert made["network_name"] == body["network"]


@pytest.mark.parametrize("body", examples("EndpointPatch"))
def test_endpoint_patches(ready, body):
    assert body.items() <= ready.patch("/endpoints/red", **body).items()


@pytest.mark.parametrize("body", examples("PortmapCreate"))
def test_portmaps(ready, body):
    made = ready.post("/portmaps", **body)
    assert made["endpoint_name"] == body["endpoint"]


@pytest.mark.parametrize("body", examples("PortmapPatch"))
def test_portmap_patches(ready, body):
    made = ready.portmap(host_port=8080)
    assert body.items() <= ready.patch(f"/portmaps/{made['id']}", **body).items()


@pytest.mark.parametrize("body", examples("AllocationCreate"))
def test_allocations(ready, body):
    assert ready.post("/ipam/allocations", **body)["network_name"] == body["network"]
