"""Alembic's environment: the daemon hands over its own connection, `alembic` on a command line a URL."""

from alembic import context
from sqlalchemy import create_engine
from sqlmodel import SQLModel

import app.store.tables  # noqa: F401 - fills the metadata that autogenerate compares with


def run() -> None:
    """Runs the migrations on the connection that there is."""
    connection = context.config.attributes.get("connection")
    if connection is not None:
        _migrate(connection)
        return
    url = context.config.get_main_option("sqlalchemy.url") or "sqlite:///bridgehead.db"
    with create_engine(url).begin() as connection:
        _migrate(connection)


def _migrate(connection) -> None:
    context.configure(connection=connection, target_metadata=SQLModel.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()


run()
