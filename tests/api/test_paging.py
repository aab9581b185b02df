"""Lists in parts, by the Link header."""

import base64
import json

import pytest


def parts(api, path):
    """The parts of a list, and what they were asked by."""
    found = []
    while path:
        answer = api.client.get(path)
        assert answer.status_code == 200, answer.text
        found.append(answer.json())
        link = answer.headers.get("link", "")
        assert link == "" or link.endswith('; rel="next"')
        path = link.partition(">")[0].removeprefix("<")
    return found


@pytest.fixture
def many(api):
    for number in range(5):
        api.network(f"n{number}", subnet6="auto" if number % 2 else None, labels={"odd": str(number % 2)})
        api.endpoint(f"e{number}", network=f"n{number}")
        api.portmap(f"e{number}")
        api.post("/ipam/allocations", network=f"n{number}")
    return api


PATHS = ["/networks", "/endpoints", "/portmaps", "/ipam/pools", "/ipam/allocations"]


@pytest.mark.parametrize("limit", [1, 2, 3, 1000])
@pytest.mark.parametrize("path", PATHS)
def test_the_parts_are_the_whole(many, path, limit):
    whole = many.get(path)
    found = parts(many, f"{path}?limit={limit}")
    assert [one for part in found for one in part] == whole
    assert {len(part) for part in found[:-1]} <= {limit}
    assert 0 < len(found[-1]) <= limit


def test_filters_stay(many):
    whole = many.get("/networks?label=odd=0")
    found = parts(many, "/networks?limit=1&label=odd=0&label=odd")
    assert [one for part in found for one in part] == whole
    assert len(whole) == 3


def name(one):
    return [one.get(field) for field in ("id", "network", "subnet", "address")]


@pytest.mark.parametrize("path", PATHS)
def test_what_comes_and_goes_in_between(many, path):
    whole = [name(one) for one in many.get(path)]
    first = many.client.get(f"{path}?limit=2")
    many.delete("/networks/n0?force=true")
    many.delete("/networks/n1?force=true")
    many.network("new")
    rest = parts(many, first.headers["link"].partition(">")[0].removeprefix("<"))
    found = [name(one) for part in rest for one in part]
    left = [name(one) for one in many.get(path)]
    assert found == [one for one in left if one not in whole[:2]]


def test_a_part_that_ends_with_the_list_has_no_next(many):
    assert "link" not in many.client.get("/networks?limit=5").headers
    assert "link" not in many.client.get("/networks").headers


def cursor(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("given", ["", "nonsense", "%ff", cursor({}), cursor([None]), cursor([1, 2]), cursor([[]])])
@pytest.mark.parametrize("path", PATHS)
def test_made_up_cursors(many, path, given):
    many.refused("GET", f"{path}?limit=2&cursor={given}", None, 422, "invalid", "cursor")


def test_an_empty_cursor_list_is_the_beginning(many):
    assert many.get(f"/networks?cursor={cursor([])}") == many.get("/networks")
