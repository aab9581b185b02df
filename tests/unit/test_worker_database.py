"""What the worker must survive of the database: a full disk, and a commit that fails before or after it is written."""

import errno
import json
import logging
from functools import partial

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError
from working import WAIT, Held, World, bridges, passes, stored

from app.model.errors import BridgeheadError, NotFound, StoreFailed
from app.reconcile import worker as worker_module
from app.sandbox import eventually
from app.services import networks
from app.services.requests import NetworkCreate
from app.store import session as session_module


def test_a_failed_commit_is_followed_by_a_full_pass(world, monkeypatch):
    world.settle()
    seen = passes(world, monkeypatch)
    world.read_only(True)
    with pytest.raises(StoreFailed):
        world.do(networks.create, request=NetworkCreate(name="web"))
    world.settle()
    assert len(seen) == 1
    world.read_only(False)
    world.make()


def test_a_take_back_that_is_stuck_is_mended_by_a_full_pass(world):
    world.read_only(True)
    real = world.kernel.apply
    broken = []

    def apply(op):
        if op.after is None and not broken:
            broken.append(op)
            raise OSError(errno.EIO, "I/O error")
        real(op)

    world.kernel.apply = apply
    with pytest.raises(StoreFailed):
        world.do(networks.create, request=NetworkCreate(name="web"))
    world.settle()
    assert broken
    assert bridges(world) == []


def lose_transaction(context):
    """What SQLite does by itself on a full disk: the whole transaction is gone, and the statement fails."""
    networks.create(context, NetworkCreate(name="mine", subnet="10.2.0.0/24"))
    connection = context.store._connection
    connection.connection.driver_connection.execute("ROLLBACK")
    connection.exec_driver_sql("INSERT INTO nothing VALUES (1)")


def test_a_transaction_that_the_database_took_back_is_nobodys(world):
    with Held(world):
        before = world.worker.submit(
            partial(networks.create, request=NetworkCreate(name="before", subnet="10.0.0.0/24"))
        )
        refused = world.worker.submit(partial(networks.delete, ref="nothing", force=False))
        lost = world.worker.submit(lose_transaction)
        after = world.worker.submit(partial(networks.create, request=NetworkCreate(name="after", subnet="10.1.0.0/24")))
    for answer in (before, lost, after):
        with pytest.raises(StoreFailed, match="nothing was changed"):
            answer.result(WAIT)
    with pytest.raises(NotFound):
        refused.result(WAIT)
    world.settle()
    assert bridges(world) == stored(world) == list(world.catalog.networks) == []
    world.make()


def test_a_full_database_refuses_and_goes_on_serving(tmp_path):
    world = World(tmp_path / "full.db")

    def limit(database, _record):
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count={pages + 4}").close()

    world.engine.dispose()
    event.listen(world.engine, "connect", limit)
    world.start()
    labels = {f"k{number}": "x" * 256 for number in range(60)}
    create = [
        partial(networks.create, request=NetworkCreate(name=f"n{number}", subnet=f"10.0.{number}.0/24", labels=labels))
        for number in range(8)
    ]
    made, refused = [], []
    try:
        for _round in range(2):
            with Held(world):
                answers = [world.worker.submit(service) for service in create]
            for number, answer in enumerate(answers):
                failure = answer.exception(WAIT)
                (made if failure is None else refused).append(f"n{number}")
                assert failure is None or isinstance(failure, BridgeheadError), failure
            assert any(isinstance(answer.exception(), StoreFailed) for answer in answers)
            world.settle()
            assert bridges(world) == stored(world)
            assert sorted(one.name for one in world.catalog.networks.values()) == stored(world)
        for name in stored(world):
            world.do(networks.delete, ref=name, force=True)
        world.do(networks.create, request=NetworkCreate(name="small", subnet="10.1.0.0/24"))
        assert bridges(world) == ["small"]
    finally:
        world.worker.stop()
        world.engine.dispose()


def test_without_room_the_kernel_is_not_touched(world, monkeypatch):
    world.make()
    before = world.kernel.snapshot(), dict(world.rules.items)
    done = []
    monkeypatch.setattr(world.kernel, "apply", done.append)
    with monkeypatch.context() as full:
        full.setattr(session_module, "ROOM", 1 << 60)
        assert not session_module.is_writable(world.engine)
        with pytest.raises(StoreFailed, match=r"is full: .* nothing was changed"):
            world.do(networks.delete, ref="web", force=True)
        with pytest.raises(NotFound):
            world.do(networks.delete, ref="nothing", force=True)
    assert done == []
    assert (world.kernel.snapshot(), dict(world.rules.items)) == before
    assert session_module.is_writable(world.engine)


@pytest.mark.parametrize("written", [False, True])
def test_after_a_failed_commit_readers_see_what_is_stored(world, written, caplog):
    """A commit may fail after it was written, or before; what was written all the same is in the audit log."""
    world.make()
    caplog.set_level(logging.INFO, "bridgehead.audit")

    def commit(connection):
        if written:
            connection.connection.driver_connection.execute("COMMIT")
        raise OperationalError("COMMIT", {}, Exception("disk I/O error"))

    event.listen(world.engine, "commit", commit)
    answers = [
        world.worker.submit(partial(networks.create, request=NetworkCreate(name="db", subnet="10.0.0.0/24"))),
        world.worker.submit(partial(networks.delete, ref="web", force=True)),
    ]
    for answer in answers:
        with pytest.raises(StoreFailed):
            answer.result(WAIT)
    event.remove(world.engine, "commit", commit)
    world.settle()
    assert sorted(one.name for one in world.catalog.networks.values()) == stored(world) == bridges(world)
    assert stored(world) == (["db"] if written else ["web"])
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "bridgehead.audit"]
    told = sorted((one["verb"], one["kind"], one["who"]) for one in lines)
    if written:
        assert ("create", "network", "bridgehead") in told
        assert [kind for verb, kind, _who in told if verb == "delete"] == ["endpoint", "network", "portmap"]
        assert {one["detail"] for one in lines} == {"its commit was reported as failed, and found written"}
    else:
        assert told == []


def test_what_readers_see_is_read_again_until_it_can_be(world, monkeypatch):
    """After something unexpected the first look at the store fails too."""
    monkeypatch.setattr(worker_module, "_HEAL_AGAIN", 0.01)
    read, failures = worker_module.read, [StoreFailed("the disk is away")] * 2

    def failing(engine):
        if failures:
            raise failures.pop()
        return read(engine)

    def broken(_one):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setattr(world.worker._requests, "_publish", broken)
        patch.setattr(worker_module, "read", failing)
        with pytest.raises(RuntimeError):
            world.do(networks.create, request=NetworkCreate(name="web"))
        assert eventually(lambda: [one.name for one in world.catalog.networks.values()] == ["web"])
    assert not failures
