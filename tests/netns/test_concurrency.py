"""Many at once: nothing is given twice, and of those who want the same thing one gets it."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import httpx
import pytest
from world import endpoint, get, network, portmap

CONCURRENCY = 8


@pytest.fixture
def clients(daemon):
    """As many as run at once, with a connection each."""
    made = [
        httpx.Client(
            transport=httpx.HTTPTransport(uds=str(daemon.socket), verify=False),
            base_url="http://bridgehead",
            timeout=60,
            trust_env=False,
        )
        for _ in range(CONCURRENCY)
    ]
    yield made
    for client in made:
        client.close()


def spread(clients, total, work):
    """work(client, number) for each number, all clients at once; the results in the numbers' order."""

    def share(first):
        return [(number, work(clients[first], number)) for number in range(first, total, CONCURRENCY)]

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        found = [pair for part in pool.map(share, range(CONCURRENCY)) for pair in part]
    return [result for _number, result in sorted(found, key=lambda pair: pair[0])]


def at_once(clients, path, body_of):
    """The answers to one POST of each client, sent together."""
    barrier = Barrier(CONCURRENCY)

    def send(client, number):
        barrier.wait()
        return client.post(f"/{path}", json=body_of(number))

    return spread(clients, CONCURRENCY, send)


def one_wins(answers, code):
    """Exactly one is made, and the others are told why not."""
    found = Counter((answer.status_code, answer.json().get("code")) for answer in answers)
    return found == {(201, None): 1, (409, code): CONCURRENCY - 1}


def test_one_hundred_endpoints_with_concurrency_8(sandbox, api, clients):
    network(api, "web")
    made = spread(clients, 100, lambda client, number: endpoint(client, f"e{number}"))
    for field, expected in (("address", 100), ("mac", 100), ("host_ifname", 100), ("name", 100)):
        assert len({one[field] for one in made}) == expected, field
    assert {one["status"]["state"] for one in made} == {"ready"}
    first, others = sandbox.netns(made[0]["namespace"]), [one["address"] for one in made[1:]]
    with ThreadPoolExecutor(CONCURRENCY) as pool:
        reached = dict(zip(others, pool.map(first.ping, others), strict=True))
    assert all(reached.values()), [address for address, answered in reached.items() if not answered]
    spread(clients, 100, lambda client, number: client.delete(f"/endpoints/e{number}").raise_for_status())
    assert sandbox.netns_names() == []
    assert get(api, "endpoints") == []


def test_the_same_name_at_once(sandbox, api, clients):
    assert one_wins(at_once(clients, "networks", lambda _n: {"name": "web"}), "name_taken")
    body = {"network": "web", "name": "mine"}
    assert one_wins(at_once(clients, "endpoints", lambda n: body | {"namespace": f"e{n}"}), "name_taken")
    assert len(sandbox.netns_names()) == 1


def test_the_same_subnet_at_once(sandbox, api, clients):
    before = set(sandbox.host.links())
    answers = at_once(clients, "networks", lambda n: {"name": f"n{n}", "subnet": "10.5.0.0/24"})
    assert one_wins(answers, "subnet_overlap")
    assert len(set(sandbox.host.links()) - before) == 1


def test_the_same_bridge_at_once(api, clients):
    answers = at_once(clients, "networks", lambda n: {"name": f"n{n}", "bridge": "br0"})
    assert one_wins(answers, "interface_exists")


def test_the_same_address_at_once(sandbox, api, clients):
    network(api, "web")
    body = {"network": "web", "address": "192.168.15.77"}
    assert one_wins(at_once(clients, "endpoints", lambda n: body | {"namespace": f"e{n}"}), "address_taken")
    assert len(sandbox.netns_names()) == 1


def test_the_same_port_at_once(sandbox, api, clients):
    network(api, "web")
    endpoint(api, "red")
    answers = at_once(clients, "portmaps", lambda _n: {"endpoint": "red", "host_port": 8080})
    assert one_wins(answers, "port_taken")
    rules = sandbox.host.exec(["iptables-legacy", "-t", "nat", "-S"]).stdout
    assert rules.count("--dport 8080") == 1


def test_automatic_subnets_ports_and_names_at_once(api, clients):
    networks = [answer.json() for answer in at_once(clients, "networks", lambda n: {"name": f"n{n}"})]
    assert len({one["subnet"] for one in networks}) == CONCURRENCY
    answers = at_once(clients, "endpoints", lambda n: {"network": f"n{n}", "namespace": "red"})
    endpoints = [answer.json() for answer in answers]
    for field in ("name", "ifname", "host_ifname"):
        assert len({one[field] for one in endpoints}) == CONCURRENCY, field
    ports = [one.json()["host_port"] for one in at_once(clients, "portmaps", lambda _n: {"endpoint": "red"})]
    assert sorted(ports) == list(range(49153, 49153 + CONCURRENCY))


def test_endpoints_come_and_go_at_once(sandbox, api, clients):
    """Each client makes and removes its own; what one removes is never another's."""
    network(api, "web")
    endpoint(api, "stays")
    portmap(api, "stays", 8080, target_port=80)

    def come_and_go(client, number):
        given = endpoint(client, f"e{number}")
        assert sandbox.netns(f"e{number}").ping(given["gateway"])
        portmap(client, f"e{number}", 9000 + number)
        client.delete(f"/endpoints/e{number}?force=true").raise_for_status()

    spread(clients, 5 * CONCURRENCY, partial(come_and_go))
    assert sandbox.netns_names() == ["stays"]
    stays = sandbox.netns("stays")
    with stays.tcp_server(80):
        assert sandbox.client.tcp("203.0.113.2", 8080) == b"stays\n"


def test_changes_with_one_tag_at_once(api, clients):
    network(api, "web")
    headers = {"if-match": api.get("/networks/web").headers["etag"]}
    barrier = Barrier(CONCURRENCY)

    def change(client, number):
        barrier.wait()
        return client.patch("/networks/web", json={"labels": {"by": str(number)}}, headers=headers)

    answers = spread(clients, CONCURRENCY, change)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 412: CONCURRENCY - 1}
    winner = next(answer for answer in answers if answer.status_code == 200)
    assert get(api, "networks/web")["labels"] == winner.json()["labels"]


def test_posts_with_one_key_at_once(sandbox, api, clients):
    network(api, "web")
    barrier = Barrier(CONCURRENCY)

    def make(client, _number):
        barrier.wait()
        body = {"network": "web", "namespace": "red"}
        return client.post("/endpoints", json=body, headers={"idempotency-key": "one"})

    answers = spread(clients, CONCURRENCY, make)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert len(get(api, "endpoints")) == 1
