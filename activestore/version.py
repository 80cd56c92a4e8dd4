"""The version of the package; the protocol has its own, in `wire.limits`."""

VERSION = "0.1.0"
