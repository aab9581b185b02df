"""openapi.json against the real daemon: what schemathesis makes of it, with every check on."""

import json
import os
import sys
from pathlib import Path

import pytest
from world import endpoint, get, network, portmap

HERE = Path(__file__).parent
LISTEN = "127.0.0.1:8015"


@pytest.fixture
def firewall():
    return "nftables"


@pytest.fixture
def daemon_options():
    return {"listen": LISTEN}


def safe_document(document):
    """Without what would leave the sandbox: a process id is one of the machine's."""
    del document["components"]["schemas"]["EndpointCreate"]["properties"]["pid"]
    return document


@pytest.fixture
def ready(api, tmp_path):
    """What the examples of the document speak of is there; the document's file."""
    network(api, "web", subnet6="auto")
    network(api, "br0", gateway=None)
    endpoint(api, "red")
    portmap(api, "red", 8080)
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(safe_document(get(api, "openapi.json"))))
    return file


def played(sandbox, daemon, file, seconds, *options):
    """The report, and what was printed."""
    token = (daemon.state_dir / "token").read_text().strip()
    report = file.with_name("report.json")
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml"), "run"]
    command += [str(file), "--url", f"http://{LISTEN}", "--header", f"Authorization: Bearer {token}"]
    command += ["--max-time", str(seconds), "--no-color", "--report", "json", "--report-json-path", str(report)]
    # its own cache of examples is for people
    command = ["env", "--chdir", str(file.parent), f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}", *command]
    shown = sandbox.host.exec([*command, *options], timeout=seconds + 90, check=False)
    assert report.exists(), shown.stdout + shown.stderr
    return json.loads(report.read_text()), shown.stdout


def check(sandbox, daemon, file, figure, seconds, *options):
    report, shown = played(sandbox, daemon, file, seconds, *options)
    counted = report["test_cases"]
    figure(
        f"{counted['generated']} requests to {report['operations']['tested']} operations in "
        f"{report['running_time']:.0f} s, seed {report['seed']}: {counted['unique_failures']} failures"
    )
    assert report["operations"]["errored"] == 0, shown
    assert counted["unique_failures"] == 0, shown
    assert report["exit_code"] == 0, shown
    log = daemon.log()
    assert "Traceback" not in log
    assert daemon.running


def test_a_short_run(sandbox, daemon, ready, figure):
    check(sandbox, daemon, ready, figure, 40, "--seed", "15", "--max-examples", "20")


@pytest.mark.soak
def test_a_long_run(sandbox, daemon, ready, figure):
    check(sandbox, daemon, ready, figure, 180)
