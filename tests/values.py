"""Values of the model, for tests of what keeps and finds them."""

from datetime import UTC, datetime
from ipaddress import ip_address

from app.model.spec import Portmap, Protocol

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def portmap(identity, endpoint_id, host_ip, port, count):
    return Portmap(
        id=identity,
        endpoint_id=endpoint_id,
        protocol=Protocol.TCP,
        host_ip=ip_address(host_ip),
        host_port=port,
        target_port=port,
        count=count,
        created_at=NOW,
        updated_at=NOW,
    )
