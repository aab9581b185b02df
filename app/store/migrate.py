"""Running the migrations; apart, because Alembic is only imported to upgrade."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine


def upgrade(engine: Engine, scripts: Path, revision: str = "head") -> None:
    """Brings the schema to a revision in one transaction; a failure leaves it as it was."""
    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
