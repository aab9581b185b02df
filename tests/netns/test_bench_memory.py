"""Memory, and reads during a burst: what the benchmarks show, as yes or no, compared within one run."""

import pytest

from bench import burst, memory


@pytest.fixture
def forward_policy():
    return "ACCEPT"


def test_idle_daemon_is_little_more_than_its_libraries(sandbox):
    measured = memory.measure(sandbox)
    assert measured.over <= memory.ALLOWED_MB, measured


def test_first_start_is_little_more_than_its_libraries(sandbox):
    measured = memory.measure(sandbox)
    assert measured.first_over <= memory.ALLOWED_MB, measured


def test_reads_do_not_wait_for_a_burst_of_endpoints(daemon):
    result = burst.measure(daemon, idle=0)
    for path, reads in result.busy.items():
        assert len(reads) > 10, f"{path}: too few reads in {result.took} s to say anything"
        assert max(reads) < result.took / 2, f"{path}: {max(reads)} s of {result.took} s"
