"""The database: what users asked for, and nothing that can be read from the kernel."""
