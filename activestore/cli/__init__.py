"""The command line `activestore-node`: one module per group of commands."""
