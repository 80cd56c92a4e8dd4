"""The wire: frames to frozen messages and back, values to bytes and back; pure.

`schemas/protocol.md` is normative; this package follows it. Nothing here opens a
socket, reads a clock or runs a pickle.
"""
