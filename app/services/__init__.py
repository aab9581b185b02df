"""Checks across objects and changes of the desired state; knows the store, never the kernel itself."""
