"""The daemon's place on the host: its locks, its token, its sockets."""
