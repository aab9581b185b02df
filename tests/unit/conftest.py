"""What tests of the worker share."""

import pytest


@pytest.fixture
def world(tmp_path):
    from working import World  # most tests here need none of what it imports

    made = World(tmp_path / "bridgehead.db").start()
    yield made
    made.worker.stop()
    made.engine.dispose()
