"""Network drivers by name. A new one is one file here and one line below."""

from app.drivers.base import Driver
from app.drivers.bridge import BridgeDriver

DRIVERS: dict[str, Driver] = {"bridge": BridgeDriver()}
