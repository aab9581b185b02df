"""Benchmarks, each in a sandbox of namespaces: `make bench`."""
