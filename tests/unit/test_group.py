"""Requests that wait together: one commit, one change of the rules, and each its own answer."""

from functools import partial

import pytest
from sqlalchemy import event
from working import WAIT, Held

from app.model.errors import KernelRefused, NameTaken, NotFound
from app.services import endpoints, networks, portmaps
from app.services.requests import EndpointCreate, EndpointPatch, NetworkCreate, PortmapCreate


@pytest.fixture
def world(world):
    world.make()
    world.settle()
    world.commits = []
    event.listen(world.engine, "commit", world.commits.append)
    return world


def together(world, *services):
    with Held(world):
        answers = [world.worker.submit(one) for one in services]
    for answer in answers:
        answer.exception(WAIT)
    return answers


def published(port):
    return partial(portmaps.create, request=PortmapCreate(endpoint="red", host_port=port, target_port=80))


def attached(namespace, **fields):
    return partial(endpoints.create, request=EndpointCreate(network="web", namespace=namespace, **fields))


def test_a_burst_is_one_commit_and_one_change_of_the_rules(world, monkeypatch):
    changes = []
    real = world.rules.apply
    monkeypatch.setattr(world.rules, "apply", lambda ops: changes.append(len(ops)) or real(ops))
    answers = together(world, *(published(8000 + number) for number in range(40)))
    assert sorted(answer.result().host_port for answer in answers) == list(range(8000, 8040))
    assert len(world.commits) == 1
    assert changes == [40]


def test_one_that_is_refused_by_itself_is_no_obstacle(world):
    answers = together(world, attached("a"), attached("b", name="red"), attached("c"))
    assert [answer.exception() is None for answer in answers] == [True, False, True]
    assert isinstance(answers[1].exception(), NameTaken)
    assert len(world.commits) == 1


def test_one_that_the_kernel_refuses_is_told_so_and_the_others_are_made(world, monkeypatch):
    real = world.kernel.apply

    def apply(op):
        if getattr(op.after, "ifname", "") == "bad0":
            raise KernelRefused(12, "ip link add", "no")
        real(op)

    monkeypatch.setattr(world.kernel, "apply", apply)
    answers = together(world, attached("a"), attached("b", ifname="bad0"), attached("c"), published(8080))
    assert [type(answer.exception()) for answer in answers] == [type(None), KernelRefused, type(None), type(None)]
    world.settle()
    assert {one.name for one in world.catalog.endpoints.values()} == {"red", "a", "c"}
    assert world.kernel.namespace_name_free("b")
    assert len(world.commits) == 1


def test_what_follows_from_another_in_the_group_sees_it(world):
    answers = together(
        world,
        partial(networks.create, request=NetworkCreate(name="db", subnet="10.0.0.0/24")),
        partial(endpoints.create, request=EndpointCreate(network="db", namespace="blue")),
        partial(endpoints.create, request=EndpointCreate(network="db", namespace="blue", create_namespace=False)),
        partial(endpoints.update, ref="blue", request=EndpointPatch(name="renamed")),
        partial(endpoints.delete, ref="renamed", force=False),
        partial(endpoints.update, ref="renamed", request=EndpointPatch(name="gone")),
    )
    assert [answer.exception() for answer in answers[:5]] == [None] * 5
    assert isinstance(answers[5].exception(), NotFound)
    assert [answers[1].result().name, answers[3].result().name, answers[4].result()] == ["blue", "renamed", None]
    world.settle()
    assert sorted(one.name for one in world.catalog.endpoints.values()) == ["blue-2", "red"]
    assert len(world.commits) == 1
