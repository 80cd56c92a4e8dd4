"""The client: sessions, one connection, proxies; zmq and msgpack, nothing else."""
