"""Bridgehead: a REST daemon that manages container networks on a Linux host."""

__version__ = "0.1.0"
