"""An API for each test, on a database and a kernel of its own."""

import shutil

import pytest
from harness import Api, make_kernel

from app.store.session import open_database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "empty.db"
    open_database(f"sqlite:///{path}").dispose()
    return path


@pytest.fixture
def kernel():
    return make_kernel()


@pytest.fixture
def make_api(tmp_path, empty_database, kernel):
    """Makes the API; again on the same database for a restart."""
    path = tmp_path / "bridgehead.db"
    shutil.copy(empty_database, path)
    made = []

    def make(on=None, **options):
        engine = open_database(f"sqlite:///{path}")
        made.append(Api(engine, on or kernel, **options))
        made[-1].settle()
        return made[-1]

    yield make
    for one in made:
        one.close()
        one.client.close()
        one.engine.dispose()


@pytest.fixture
def api(make_api):
    return make_api()
