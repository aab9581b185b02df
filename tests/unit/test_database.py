"""Opening, migrating, refusing; queries that are more than a lookup."""

import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlmodel import SQLModel
from test_memory import allocation, endpoint
from values import portmap

import app.store.tables  # noqa: F401 - fills the metadata
from app.model.errors import StartupError, StoreFailed
from app.model.spec import AddressPlan, Allocation, AllocationKind, Network
from app.store.repository import KeptAnswer
from app.store.session import is_writable, open_database, transaction
from app.store.writes import Verb

NOW = datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "bridgehead.db"


@pytest.fixture
def engine(file):
    made = open_database(f"sqlite:///{file}")
    yield made
    made.dispose()


def network(name="web", subnet="10.0.0.0/16"):
    found = ip_network(subnet)
    plan = AddressPlan(found, None, found)
    return Network(id=name, name=name, bridge=name, plans=(plan,), mtu=1500, created_at=NOW, updated_at=NOW)


def test_the_migrations_make_what_the_tables_say(engine):
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []


def test_every_column_of_a_row_is_written(engine):
    with transaction(engine) as store:
        web, red = network(), endpoint("e1", "web", "name:red")
        store.add_network(web)
        store.add_endpoint(red)
        store.add_portmap(portmap("p1", red.id, "0.0.0.0", 80, 1))
        store.add_allocation(allocation(web.id, 9))
        store.keep_answer("root", "key", KeptAnswer("f", 201, "{}", {}), now=NOW, since=NOW)
        written = {one.table: set(one.values) for one in store._writes if one.verb is Verb.INSERT}
    made_by_itself = {"seq", "cursor", "cursor6"}
    tables = {name: set(table.columns.keys()) for name, table in SQLModel.metadata.tables.items()}
    assert written == {name: columns - made_by_itself for name, columns in tables.items()}


def test_the_pragmas(engine):
    with engine.connect() as connection:
        values = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert values == ["wal", 2, 1]


def test_opening_again_keeps_what_is_there(engine, file):
    with transaction(engine) as store:
        store.add_network(network())
    again = open_database(f"sqlite:///{file}")
    with transaction(again) as store:
        assert store.networks() == [network()]
    again.dispose()


def test_a_newer_database_is_refused_and_left(engine, file):
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StartupError, match=r"newer Bridgehead.*9999.*upgrade") as refusal:
        open_database(f"sqlite:///{file}")
    assert "\n" not in refusal.value.detail
    assert str(file) in refusal.value.detail
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("9999",)]


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_refused_and_left(file, damage):
    file.write_bytes(damage)
    with pytest.raises(StartupError, match="move it away") as refusal:
        open_database(f"sqlite:///{file}")
    assert "\n" not in refusal.value.detail
    assert file.read_bytes() == damage


def test_damage_within_is_found(engine, file):
    with transaction(engine) as store:
        store.add_network(network())
    engine.dispose()
    raw = bytearray(file.read_bytes())
    raw[4096 : 4096 * 3] = b"\xa5" * (4096 * 2)
    file.write_bytes(raw)
    with pytest.raises(StartupError, match="move it away"):
        open_database(f"sqlite:///{file}")


@pytest.mark.parametrize("url", ["nonsense", "", "postgresql://x/y", "sqlite:////nope/nope.db"])
def test_bad_urls(url):
    with pytest.raises(StartupError) as refusal:
        open_database(url)
    assert "\n" not in refusal.value.detail


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url):
    with pytest.raises(StartupError, match="only sqlite:///PATH"):
        open_database(url)


def test_writable(engine, file):
    assert is_writable(engine)
    with engine.begin():
        assert is_writable(engine)
    engine.dispose()
    file.unlink()
    file.mkdir()
    assert not is_writable(engine)


def test_a_failed_transaction_writes_nothing(engine):
    def write_twice():
        with transaction(engine) as store:
            store.add_network(network())
            store.add_network(network())

    with pytest.raises(StoreFailed, match="nothing was changed") as refusal:
        write_twice()
    assert "INSERT" not in refusal.value.detail
    with transaction(engine) as store:
        assert store.networks() == []


def test_taken_reads_across_chunks_in_order(engine):
    first = ip_address("10.0.0.0")
    with transaction(engine) as store:
        store.add_network(network())
        for number in [*range(599, -1, -1)]:
            address = first + number
            store.add_allocation(
                Allocation(
                    id=f"a{number}",
                    network_id="web",
                    address=address,
                    kind=AllocationKind.RESERVATION,
                    created_at=NOW,
                )
            )
        found = list(store.taken(network(), first + 1, first + 590))
        assert found == [int(first) + number for number in range(1, 591)]


@pytest.mark.parametrize(
    ("subnet", "overlaps"),
    [
        ("10.0.0.0/8", True),
        ("10.0.255.255/32", True),
        ("10.1.0.0/16", False),
        ("9.255.0.0/16", False),
        ("fd00::/8", False),
    ],
)
def test_overlaps(engine, subnet, overlaps):
    with transaction(engine) as store:
        store.add_network(network())
        assert (store.network_overlapping(ip_network(subnet)) is not None) is overlaps


@pytest.mark.parametrize(
    ("subnet", "overlaps"),
    [("fd00::/8", True), ("fd00:15::8:0/112", True), ("fd00:16::/64", False), ("0.0.0.0/0", True)],
)
def test_overlaps_of_ipv6(engine, subnet, overlaps):
    six = AddressPlan(ip_network("fd00:15::/64"), None, ip_network("fd00:15::/64"))
    made = network()
    with transaction(engine) as store:
        store.add_network(replace(made, plans=(*made.plans, six)))
        assert (store.network_overlapping(ip_network(subnet)) is not None) is overlaps
