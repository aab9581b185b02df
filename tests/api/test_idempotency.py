"""Idempotency-Key: one request, however often it is sent."""

from datetime import UTC, datetime, timedelta

import pytest
from harness import Api, checked_problem

from app.model.access import Principal
from app.store import mapping
from app.store.session import open_database

KEY = {"idempotency-key": "4c8e-1"}


def post(api, path, body, key="4c8e-1"):
    return api.client.post(path, json=body, headers={"idempotency-key": key})


def kept(api):
    with api.engine.connect() as connection:
        return connection.exec_driver_sql("SELECT key FROM kept_answer ORDER BY created_at").scalars().all()


def same(first, again):
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert (first.status_code, first.content) == (again.status_code, again.content)
    for name in ("location", "etag", "content-type"):
        assert first.headers[name] == again.headers[name]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/networks", {"name": "other"}),
        ("/endpoints", {"network": "web", "namespace": "blue"}),
        ("/portmaps", {"endpoint": "red"}),
        ("/ipam/allocations", {"network": "web"}),
    ],
)
def test_the_same_request_has_the_same_answer_and_makes_one(api, path, body):
    api.network()
    api.endpoint()
    first = post(api, path, body)
    assert first.status_code == 201
    assert api.client.get(first.headers["location"]).headers["etag"] == first.headers["etag"]
    before = api.state()
    same(first, post(api, path, body))
    assert api.state() == before


def test_the_answer_stays_whatever_comes_later(api):
    first = post(api, "/networks", {"name": "web"})
    api.patch("/networks/web", mtu=1300)
    same(first, post(api, "/networks", {"name": "web"}))
    api.delete("/networks/web")
    same(first, post(api, "/networks", {"name": "web"}))
    assert api.get("/networks") == []


def test_the_answer_without_a_key_is_the_same_but_for_its_moments(api):
    keyed = post(api, "/networks", {"name": "web", "subnet": "10.0.0.0/24"}).json()
    api.delete("/networks/web")
    plain = api.network("web", subnet="10.0.0.0/24")
    for made in (keyed, plain):
        assert made["status"].pop("since")
        for moment in ("id", "created_at", "updated_at"):
            assert made.pop(moment)
    assert keyed == plain


@pytest.mark.parametrize(
    ("path", "body"), [("/networks", {"name": "other"}), ("/ipam/allocations", {"network": "web"})]
)
def test_another_request_with_the_key_is_refused(api, path, body):
    post(api, "/networks", {"name": "web"})
    api.refused("POST", path, body, 422, "idempotency_mismatch", "4c8e-1", "new key", headers=KEY)


def test_the_order_of_fields_is_no_other_request(api):
    first = post(api, "/networks", {"name": "web", "mtu": 1400})
    same(first, post(api, "/networks", {"mtu": 1400, "name": "web"}))


def test_a_refusal_leaves_the_key_free(api):
    assert post(api, "/endpoints", {"network": "web", "namespace": "red"}).status_code == 404
    assert kept(api) == []
    api.network()
    assert post(api, "/endpoints", {"network": "web", "namespace": "red"}).status_code == 201


def test_a_refusal_of_the_kernel_leaves_the_key_free(api):
    api.kernel.refuse(lambda _op: True)
    checked_problem(post(api, "/networks", {"name": "web"}), 502, "kernel_refused")
    assert kept(api) == []
    api.kernel.relent()
    assert post(api, "/networks", {"name": "web"}).status_code == 201


@pytest.mark.parametrize("key", ["", "a b", "k" * 256, "\x7f"])
def test_what_is_no_key(api, key):
    api.refused("POST", "/networks", {"name": "web"}, 422, "invalid", headers={"idempotency-key": key})


@pytest.mark.parametrize("key", ["!", "k" * 255, "~\"'\\"])
def test_what_is_a_key(api, key):
    same(post(api, "/networks", {"name": "web"}, key), post(api, "/networks", {"name": "web"}, key))


def test_at_once_one_is_made(api):
    def one(_number):
        return api.client.prepared("POST", "/networks", json={"name": "web"}, headers=KEY)

    answers = api.client.together([one(number) for number in range(8)])
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("idempotency-replayed" in answer.headers for answer in answers) == 7


def test_a_restart_keeps_answers(api, tmp_path):
    first = post(api, "/networks", {"name": "web"})
    again = Api(open_database(str(api.engine.url)), api.kernel)
    try:
        same(first, post(again, "/networks", {"name": "web"}))
    finally:
        again.close()


def age(api, key, hours):
    moment = mapping.to_text(datetime.now(UTC) - timedelta(hours=hours))
    with api.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE kept_answer SET created_at = ? WHERE key = ?", (moment, key))


def test_a_day_later_the_key_is_new(api):
    first = post(api, "/networks", {"name": "web"})
    age(api, "4c8e-1", 23.9)
    same(first, post(api, "/networks", {"name": "web"}))
    age(api, "4c8e-1", 24.1)
    checked_problem(post(api, "/networks", {"name": "web"}), 409, "name_taken")
    assert post(api, "/networks", {"name": "other"}).json()["name"] == "other"
    same(post(api, "/networks", {"name": "x"}, "n"), post(api, "/networks", {"name": "x"}, "n"))


def test_old_answers_go_a_few_with_each_new_one(api):
    api.network()
    for number in range(20):
        post(api, "/ipam/allocations", {"network": "web"}, f"old{number:02}")
    for number in range(20):
        age(api, f"old{number:02}", 30)
    post(api, "/ipam/allocations", {"network": "web"}, "new1")
    assert kept(api) == [f"old{number}" for number in range(16, 20)] + ["new1"]
    post(api, "/ipam/allocations", {"network": "web"}, "new2")
    assert kept(api) == ["new1", "new2"]


def test_a_principal_s_keys_are_its_own(api):
    def of(name):
        async def named(scope, receive, send):
            scope.setdefault("state", {})["principal"] = Principal(name)
            await api.app(scope, receive, send)

        return api.client.of(named)

    one, other = of("token ci"), of("token web")
    body = {"json": {"name": "web"}, "headers": KEY}
    same(one.post("/networks", **body), one.post("/networks", **body))
    checked_problem(other.post("/networks", **body), 409, "name_taken")
    one.close()
    other.close()
