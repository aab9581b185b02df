"""The API in one call each, for tests that are about packets."""

import json

QUIET = 0.15
"""How long a packet that must not be answered is waited for; what is answered takes well under 1 ms."""


def made(api, path, **body):
    answer = api.post(f"/{path}", json=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def network(api, name="web", **fields):
    return made(api, "networks", name=name, **fields)


def endpoint(api, namespace, network="web", **fields):
    return made(api, "endpoints", network=network, namespace=namespace, **fields)


def portmap(api, endpoint="red", host_port=8080, **fields):
    return made(api, "portmaps", endpoint=endpoint, host_port=host_port, **fields)


def patch(api, path, **body):
    answer = api.patch(f"/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def delete(api, path):
    answer = api.delete(f"/{path}")
    assert answer.status_code == 204, answer.text


def get(api, path):
    answer = api.get(f"/{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(answer, status, code, *words):
    """A problem document with this status and code whose detail has all these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), problem
    for word in words:
        assert str(word) in problem["detail"], problem
    return problem


def everything(api):
    """What the API shows, without the moments of its statuses, which are kept in memory."""
    shown = {path: get(api, path) for path in ("networks", "endpoints", "portmaps", "ipam/pools", "ipam/allocations")}
    for objects in shown.values():
        for one in objects:
            if "status" in one:
                del one["status"]["since"]
    return json.loads(json.dumps(shown))


def by_name(objects):
    return {one["name"]: one for one in objects}


def route_back(sandbox, subnet, via):
    """The internet sends a subnet's packets to the host."""
    sandbox.internet.exec(["ip", "route", "add", subnet, "via", via])
