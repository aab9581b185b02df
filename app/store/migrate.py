"""Running the migrations; apart, because Alembic is only imported to upgrade."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def upgrade(engine: Engine, scripts: Path, revision: str = "head") -> None:
    """Brings the schema up to a revision in one transaction; a failure leaves it as it was."""
    _run(command.upgrade, engine, scripts, revision)


def downgrade(engine: Engine, scripts: Path, revision: str) -> None:
    """Takes the schema back to a revision in one transaction; a failure leaves it as it was."""
    _run(command.downgrade, engine, scripts, revision)


def _run(step: Callable[[Config, str], None], engine: Engine, scripts: Path, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        step(config, revision)
