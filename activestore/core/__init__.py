"""The cores: what a peer decides, as `step(event, now_s) -> list[effect]`.

They read no clock, no chance and no socket; the daemon's loop and a simulator drive the
same code.
"""
