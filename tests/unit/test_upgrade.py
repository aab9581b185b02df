"""A database of each earlier schema: copied, upgraded with its rows, taken back."""

import sqlite3
import stat
from dataclasses import replace
from ipaddress import ip_address

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from former import EARLIER, HEAD, make_database
from sqlalchemy import create_engine
from sqlmodel import SQLModel

from app.model.errors import StartupError
from app.store import migrate
from app.store.session import migrations_dir, open_database, transaction


@pytest.fixture
def file(tmp_path):
    return tmp_path / "bridgehead.db"


def dump(path):
    with sqlite3.connect(path) as connection:
        return list(connection.iterdump())


def test_every_earlier_schema_is_tried():
    found = {path.name[:4] for path in (migrations_dir() / "versions").glob("[0-9]*.py")}
    assert {*EARLIER, HEAD} == found


@pytest.mark.parametrize("schema", EARLIER)
def test_an_upgrade_keeps_the_rows(file, schema):
    make_database(file, schema)
    engine = open_database(f"sqlite:///{file}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
        assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []
    with transaction(engine) as store:
        (network,), (endpoint,), (portmap,) = store.networks(), store.endpoints(), store.portmaps()
        policies = (network.icc, network.snat_address, network.spoof_protection)
        assert (network.plan(6), *policies) == (None, True, None, False)
        assert endpoint.addresses == (ip_address("10.0.0.2"),)
        assert endpoint.ephemeral is False
        assert endpoint.uid is None
        assert (portmap.host_port, portmap.count) == (8080, 1)
        held = {one.kind: one.id for one in store.allocations()}
        assert held == {"gateway": network.id, "endpoint": endpoint.id}
        # both versions under one id, but no address twice
        one = next(one for one in store.allocations() if one.kind == "endpoint")
        store.add_allocation(replace(one, address=ip_address("fd00::2")))
    engine.dispose()


@pytest.mark.parametrize("schema", EARLIER)
def test_the_database_is_copied_before_an_upgrade(file, schema):
    make_database(file, schema)
    before = dump(file)
    file.chmod(0o644)
    (file.parent / f"{file.name}.before-{HEAD}").write_text("an older copy")
    (file.parent / f"{file.name}.before-{HEAD}.part").write_text("the rest of an attempt")
    open_database(f"sqlite:///{file}").dispose()
    copy = file.parent / f"{file.name}.before-{HEAD}"
    assert sorted(file.parent.iterdir()) == [file, copy]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert dump(copy) == before
    copy.replace(file)  # going back, then up again
    open_database(f"sqlite:///{file}").dispose()


def test_what_is_in_the_log_only_is_copied_too(file):
    make_database(file, EARLIER[-1])
    with sqlite3.connect(file) as writer:
        writer.execute("PRAGMA journal_mode=WAL")
        writer.execute("UPDATE network SET name = 'renamed'")
        writer.commit()
        open_database(f"sqlite:///{file}").dispose()
    with sqlite3.connect(f"{file}.before-{HEAD}") as copy:
        assert copy.execute("SELECT name FROM network").fetchall() == [("renamed",)]


def test_without_a_copy_there_is_no_upgrade(file):
    make_database(file, EARLIER[-1])
    before = dump(file)
    (file.parent / f"{file.name}.before-{HEAD}.part").mkdir()
    with pytest.raises(StartupError, match="cannot be copied") as refusal:
        open_database(f"sqlite:///{file}")
    assert "\n" not in refusal.value.detail
    assert dump(file) == before


def test_no_copy_of_a_new_or_current_database(file):
    open_database(f"sqlite:///{file}").dispose()
    open_database(f"sqlite:///{file}").dispose()
    assert [path.name for path in file.parent.glob("*.before-*")] == []


def test_back_to_the_first_schema_and_up_again(file):
    make_database(file, "0001")
    open_database(f"sqlite:///{file}").dispose()
    plain = create_engine(f"sqlite:///{file}")
    with plain.begin() as connection:
        six = "SELECT id, network_id, 'fd00::2', '0001', kind, endpoint_id, note, created_at FROM allocation"
        columns = "id, network_id, address, address_key, kind, endpoint_id, note, created_at"
        connection.exec_driver_sql(f"INSERT INTO allocation ({columns}) {six} WHERE kind = 'endpoint'")
    migrate.downgrade(plain, migrations_dir(), "0001")
    with plain.connect() as connection:
        held = connection.exec_driver_sql("SELECT id, address FROM allocation ORDER BY seq").all()
        assert [address for _id, address in held] == ["10.0.0.1", "10.0.0.2"]
        assert connection.exec_driver_sql("SELECT host_port FROM portmap").scalars().all() == [8080]
    plain.dispose()
    again = open_database(f"sqlite:///{file}")
    with transaction(again) as store:
        assert [one.name for one in store.networks()] == ["web"]
    again.dispose()
