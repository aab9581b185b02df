"""Frozen values of the domain; imports the standard library only."""
