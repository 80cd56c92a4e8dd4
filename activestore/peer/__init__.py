"""The daemon: sockets, threads and processes around the pure cores."""
