"""The entry point: where a thin client is installed it says what is missing.

Rules of this file: it imports nothing beyond the standard library for sure; the rest
is there with `activestore[node]`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

# As in `output.EXIT_CODES`, which cannot be imported where these are needed.
EXIT_NOT_INSTALLED, EXIT_INTERRUPTED = 2, 130

_missing: ModuleNotFoundError | None = None
try:
    from activestore.cli.group import group, run
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] == "activestore":
        raise
    _missing = error
except KeyboardInterrupt:
    # Loading takes long enough for people to think better of it.
    sys.stderr.write("interrupted\n")
    raise SystemExit(EXIT_INTERRUPTED) from None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit with its code.

    Args:
        arguments: What follows the program's name; None for those of this process.
    """
    missing = _missing
    if missing is None:
        try:
            sys.exit(run(arguments))
        except ModuleNotFoundError as error:
            missing = error  # Of a command, which is loaded when it is used.
    sys.stderr.write(
        f"error: the command line needs the module {missing.name!r}, which this "
        "thin installation lacks: pip install 'activestore[node]'\n"
    )
    sys.exit(EXIT_NOT_INSTALLED)


__all__ = ["group", "main"]

if __name__ == "__main__":
    main()
