"""Row 14: what one endpoint leaves is the next one's at once, while the former is still being removed."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from cells import PROTOCOLS
from lab import IPV4, IPV6, together

from app.sandbox import eventually

FLOWING = ("udp", "sctp")


def takers(lab):
    """The bodies of what takes red's address, whoever has it, and its port."""
    addresses = {"address": IPV4.red, **lab.only6(address6=IPV6.red)}

    def endpoint(name):
        return {"network": "web", "namespace": name, **addresses}

    def portmap(name, protocol):
        body = {"endpoint": name, "protocol": protocol, "host_ip": lab.family.any}
        return {**body, "host_port": 8080, "target_port": 80}

    return endpoint, portmap


def used_before(lab, stack):
    """red with its port, flows to it, and a neighbour that knows its MAC."""
    lab.network("web")
    red, neighbour = lab.endpoint("red"), lab.endpoint("neighbour")
    lab.publish("red", 8080, target_port=80)
    flows = {one: stack.enter_context(lab.client.flow(one, lab.family.host, 8080, 40001)) for one in FLOWING}
    with lab.servers(red, 80):
        for flow in flows.values():
            assert flow.ask(b"")
        assert neighbour.tcp(lab.family.red, 80)
    return neighbour, flows


def all_is_its_own(lab, cell, neighbour, flows, name):
    """In and out, for the neighbour and for the flows that the former one had."""
    family, place = lab.family, lab.sandbox.netns(name)
    with lab.servers(place, 80), lab.servers(lab.internet, 80):
        works = {}
        for protocol in PROTOCOLS:
            works[protocol, "in"] = lambda one=protocol: lab.client.ask(one, family.host, 8080)
            works[protocol, "near"] = lambda one=protocol: neighbour.ask(one, family.red, 80)
            works[protocol, "out"] = lambda one=protocol: place.ask(one, family.server, 80)
        for protocol, flow in flows.items():
            works[protocol, "flow"] = lambda flow=flow: flow.ask(b"")
        told = together(works)
        for protocol in PROTOCOLS:
            with cell(protocol):
                expected = {way: place.banner for one, way in works if one == protocol} | {"out": b"internet\n"}
                assert {way: answer for (one, way), answer in told.items() if one == protocol} == expected


def test_row_14_a_freed_address_and_port_work_for_the_next(lab, cell):
    with ExitStack() as stack:
        neighbour, flows = used_before(lab, stack)
        endpoint, portmap = takers(lab)
        former = "red"
        for name in ("blue", "red"):
            lab.delete(f"endpoints/{former}?force=true")
            for path, body in (
                ("endpoints", endpoint(name)),
                *(("portmaps", portmap(name, protocol)) for protocol in PROTOCOLS),
            ):
                answer = lab.api.post(f"/{path}", json=body)
                assert answer.status_code == 201, answer.text
            all_is_its_own(lab, cell, neighbour, flows, name)
            former = name


def test_row_14_and_while_the_removal_runs(lab, cell):
    """What is asked for beside the removal is taken as soon as it is free."""

    def taken(path, body):
        answer = lab.api.post(f"/{path}", json=body)
        assert answer.status_code in {201, 404, 409}, answer.text  # 404: its endpoint is on its way too
        return answer.status_code == 201

    with ExitStack() as stack, ThreadPoolExecutor(5) as pool:
        neighbour, flows = used_before(lab, stack)
        endpoint, portmap = takers(lab)
        former = "red"
        for name in ("blue", "green", "red"):
            removal = pool.submit(lab.delete, f"endpoints/{former}?force=true")
            wanted = [("endpoints", endpoint(name)), *(("portmaps", portmap(name, one)) for one in PROTOCOLS)]
            taking = [pool.submit(eventually, lambda one=one: taken(*one)) for one in wanted]
            for one in (removal, *taking):
                one.result()
            all_is_its_own(lab, cell, neighbour, flows, name)
            former = name
