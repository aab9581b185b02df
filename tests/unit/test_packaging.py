"""The systemd unit, the documents and the code agree on what rights the daemon has."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from app.host.privileges import NEEDED

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "bridgehead.service"
SECURITY = (ROOT / "docs" / "security.md").read_text()


def values(key):
    lines = UNIT.read_text().splitlines()
    return [word for line in lines if line.startswith(f"{key}=") for word in line.partition("=")[2].split()]


def test_the_unit_s_capabilities():
    assert set(values("CapabilityBoundingSet")) == {*NEEDED, "CAP_CHOWN"}


def test_the_documented_capabilities():
    table = SECURITY.split("## The process")[1].split("## The systemd unit")[0]
    assert set(re.findall(r"^\| `(CAP_[A-Z_]+)` \|", table, re.MULTILINE)) == set(NEEDED)


def test_the_container_s_capabilities():
    readme = (ROOT / "README.md").read_text()
    added = {f"CAP_{name}" for name in re.findall(r"--cap-add ([A-Z_]+)", readme)}
    assert added == set(NEEDED)
    for name in added:
        assert re.search(rf"^\| .*`{name.removeprefix('CAP_')}`.* \|", readme, re.MULTILINE), name


def test_the_unit_is_documented():
    for key in {line.partition("=")[0] for line in UNIT.read_text().split("NoNewPrivileges")[1].splitlines()[1:]}:
        if key and not key.startswith(("#", "[", "WantedBy", "SystemCall")):
            assert f"`{key}=" in SECURITY, key


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_the_stated_exposure():
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(UNIT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    found = re.search(r"Overall exposure level for bridgehead.service: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"it does not say: {done.stderr}")
    assert float(found[1]) <= float(re.search(r"says \*\*([0-9.]+)\*\*", SECURITY)[1])
