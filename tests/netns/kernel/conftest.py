"""The kernel's side by itself, in a sandbox's host with IPv6 and no rules."""

import pytest
from driven import driven


@pytest.fixture
def forward_policy():
    return "ACCEPT"


@pytest.fixture
def ipv6():
    return True


@pytest.fixture
def kernel(sandbox, tmp_path):
    with driven(sandbox, tmp_path) as made:
        yield made
