"""icc, snat_address, spoof_protection, and namespaces on several networks: what is planned again on a live network."""

from harness import UPLINK, UPLINK6

from app.model.state import Attachment, Sysctl


def last(api, kind):
    return [op.after for op in api.kernel.log if isinstance(op.after, kind)][-1]


def rp_filters(api):
    return {name: api.kernel.sysctls[f"net/ipv4/conf/{name}/rp_filter"] for name in ("web", "db")}


def test_icc_and_spoof_protection_are_the_ports(api):
    made = api.network(icc=False, spoof_protection=True)
    assert (made["icc"], made["spoof_protection"]) == (False, True)
    api.endpoint()
    port = last(api, Attachment)
    assert (port.isolated, port.locked) == (True, True)


def test_patch_plans_the_endpoints_again(api):
    api.network()
    endpoints = [api.endpoint(name) for name in ("red", "blue")]
    for body, wanted in (
        ({"icc": False}, (True, False)),
        ({"spoof_protection": True}, (True, True)),
        ({"icc": True, "spoof_protection": False}, (False, False)),
    ):
        before = len(api.kernel.log)
        assert body.items() <= api.patch("/networks/web", **body).items()
        changed = [op.after for op in api.kernel.log[before:] if isinstance(op.after, Attachment)]
        assert {one.owner for one in changed} == {one["id"] for one in endpoints}
        assert {(one.isolated, one.locked) for one in changed} == {wanted}


def test_other_patches_leave_the_endpoints_alone(api):
    api.network()
    api.endpoint()
    before = len(api.kernel.log)
    api.patch("/networks/web", isolated=False, masquerade=False, labels={"a": "b"})
    assert [op for op in api.kernel.log[before:] if isinstance(op.item, Attachment)] == []


def test_snat_address_of_either_version(api):
    assert api.network(snat_address=UPLINK)["snat_address"] == UPLINK
    made = api.network("six", subnet6="auto", snat_address=UPLINK6)
    assert made["snat_address"] == UPLINK6
    assert api.patch("/networks/six", snat_address=UPLINK)["snat_address"] == UPLINK
    assert api.patch("/networks/six", snat_address=None, masquerade=False)["snat_address"] is None


def test_an_address_that_the_host_lost_holds_up_no_other_patch(api):
    api.network(snat_address=UPLINK)
    api.kernel.host.links["uplink"].addresses.clear()
    assert api.patch("/networks/web", mtu=1300)["snat_address"] == UPLINK
    api.refused("PATCH", "/networks/web", {"snat_address": UPLINK}, 422, "invalid", UPLINK)


def test_rp_filter_is_loose_while_a_namespace_is_on_several_networks(api):
    api.kernel.sysctls["net/ipv4/conf/all/rp_filter"] = "1"  # only where it is strict
    api.network()
    api.network("db")
    api.endpoint()
    api.endpoint()
    assert rp_filters(api) == {"web": "0", "db": "0"}
    api.endpoint(network="db")
    assert rp_filters(api) == {"web": "2", "db": "2"}
    api.delete("/endpoints/red-2")
    assert rp_filters(api) == {"web": "2", "db": "2"}
    api.delete("/endpoints/red")
    assert rp_filters(api) == {"web": "0", "db": "0"}


def test_rp_filter_goes_back_with_the_other_network(api):
    api.network()
    api.network("db")
    api.endpoint()
    api.endpoint(network="db")
    api.delete("/networks/db?force=true")
    assert api.kernel.sysctls["net/ipv4/conf/web/rp_filter"] == "0"


def test_an_endpoint_plans_no_network_where_it_is_alone(api):
    api.network()
    api.endpoint()
    before = len(api.kernel.log)
    api.endpoint("blue")
    assert [op for op in api.kernel.log[before:] if isinstance(op.item, Sysctl)] == []


def test_a_restart_keeps_them(api, make_api):
    api.network(icc=False, spoof_protection=True, snat_address=UPLINK, isolated=False)
    before = api.get("/networks/web")
    api.close()
    shown = make_api().get("/networks/web")
    assert {**shown, "status": None} == {**before, "status": None}
