"""Packet filtering and NAT. Backends speak of networks and ports, never of chains."""
