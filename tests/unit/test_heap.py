"""The collector rests while somebody makes much that stays, and works again once the last of them is done."""

import gc

from app.host import heap


def test_the_collector_rests_for_the_longest():
    assert gc.isenabled()
    with heap.uncollected():
        with heap.uncollected():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_only_what_a_daemon_keeps_is_frozen():
    assert not gc.get_freeze_count()
    heap.keep_all()
    assert not gc.get_freeze_count()
    gc.freeze()
    try:
        before, more = gc.get_freeze_count(), [[] for _ in range(1000)]
        heap.keep_all()
        assert gc.get_freeze_count() >= before + len(more)
    finally:
        gc.unfreeze()
