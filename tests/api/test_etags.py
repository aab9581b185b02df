"""ETag, If-Match, If-None-Match."""

import pytest
from harness import checked_problem


@pytest.fixture
def paths(api):
    """One object of each kind."""
    api.network()
    api.endpoint()
    portmap = api.portmap(host_port=8080)
    allocation = api.post("/ipam/allocations", network="web", note="printer")
    return [
        "/networks/web",
        "/endpoints/red",
        f"/portmaps/{portmap['id']}",
        f"/ipam/allocations/{allocation['id']}",
    ]


def tag(api, path):
    found = api.client.get(path).headers["etag"]
    assert found.startswith('"')
    assert found.endswith('"')
    return found


def test_tags_are_each_object_s_own_and_stay(api, paths):
    tags = [tag(api, path) for path in paths]
    assert len(set(tags)) == len(paths)
    api.settle()
    assert [tag(api, path) for path in paths] == tags


def test_every_change_is_another_tag(api, paths):
    network, endpoint, portmap, _allocation = paths
    for path, body in (
        (network, {"mtu": 1300}),
        (network, {"labels": {"a": "b"}}),
        (network, {"gateway": "192.168.15.9"}),
        (endpoint, {"labels": {"a": "b"}}),
        (endpoint, {"default_route": False}),
        (portmap, {"target_port": 81}),
    ):
        before = tag(api, path)
        answer = api.client.patch(path, json=body)
        assert answer.headers["etag"] == tag(api, path) != before


def test_a_tag_changes_with_what_the_answer_shows_of_another(api, paths):
    network, endpoint, portmap, allocation = paths
    before = [tag(api, path) for path in (endpoint, portmap, allocation)]
    api.patch(network, gateway="192.168.15.9")
    assert tag(api, endpoint) != before[0]
    api.patch(endpoint, name="other")
    assert tag(api, portmap) != before[1]
    assert tag(api, allocation) == before[2]


def test_a_tag_does_not_change_with_status_or_neighbours(api, paths):
    before = [tag(api, path) for path in paths]
    api.catalog.set_status(api.get("/networks/web")["id"], "degraded", "something")
    api.endpoint("blue")
    assert [tag(api, path) for path in paths] == before


@pytest.mark.parametrize("form", ["{}", '"other", {}', "W/{}", "*"])
def test_get_what_the_client_has(api, paths, form):
    for path in paths:
        given = form.format(tag(api, path))
        answer = api.client.get(path, headers={"if-none-match": given})
        assert answer.status_code == 304
        assert answer.content == b""
        assert answer.headers["etag"] == tag(api, path)


@pytest.mark.parametrize("given", ['"other"', "", "nonsense", '"', 'W/"x"'])
def test_get_what_the_client_has_not(api, paths, given):
    for path in paths:
        assert api.client.get(path, headers={"if-none-match": given}).status_code == 200


BODIES = [{"mtu": 1300}, {"labels": {"a": "b"}}, {"target_port": 81}]


@pytest.mark.parametrize("given", ['"other"', "", "nonsense", "W/{}", '"a", "b"'])
def test_a_change_of_something_else_is_refused(api, paths, given):
    for number, path in enumerate(paths):
        headers = {"if-match": given.format(tag(api, path))}
        words = (tag(api, path),)
        api.refused("DELETE", path, None, 412, "precondition_failed", *words, headers=headers)
        if number < len(BODIES):
            api.refused("PATCH", path, BODIES[number], 412, "precondition_failed", *words, headers=headers)


@pytest.mark.parametrize("given", ["{}", '"other", {}', "*"])
def test_a_change_of_what_was_seen(api, paths, given):
    for path, body in zip(paths, BODIES, strict=False):
        answer = api.client.patch(path, json=body, headers={"if-match": given.format(tag(api, path))})
        assert answer.status_code == 200
    for path in reversed(paths):
        answer = api.client.delete(path, headers={"if-match": given.format(tag(api, path))})
        assert answer.status_code == 204


def test_a_tag_on_two_header_lines(api, paths):
    path = paths[0]
    headers = [("if-match", '"other"'), ("if-match", tag(api, path))]
    assert api.client.patch(path, json={"mtu": 1300}, headers=headers).status_code == 200


def test_what_is_not_there_is_404(api):
    for method in ("PATCH", "DELETE"):
        body = {"labels": {}} if method == "PATCH" else None
        answer = api.client.request(method, "/networks/nope", json=body, headers={"if-match": '"x"'})
        checked_problem(answer, 404, "not_found")


@pytest.mark.parametrize("first", ["PATCH", "DELETE"])
def test_of_two_changes_with_one_tag_one_wins(api, paths, first):
    headers = {"if-match": tag(api, paths[0])}
    calls = [
        api.client.prepared("PATCH", paths[0], json={"labels": {"n": str(number)}}, headers=headers)
        for number in range(8)
    ]
    if first == "DELETE":
        calls[0] = api.client.prepared("DELETE", f"{paths[0]}?force=true", headers=headers)
    answers = api.client.together(calls)
    codes = sorted(answer.status_code for answer in answers)
    assert codes in ([200] + [412] * 7, [204] + [404] * 7)


def test_the_tag_of_an_answer_is_that_of_the_next_get(api):
    made = api.client.post("/networks", json={"name": "web", "labels": {"b": "1", "a": "2"}})
    assert made.headers["etag"] == tag(api, made.headers["location"])
