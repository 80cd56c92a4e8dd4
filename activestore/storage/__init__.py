"""Where committed states are kept: an engine interface, its records, LMDB and memory."""
