"""`forecaster`, `python -m forecaster`: handlers first, then the command line, then an exit code."""

import sys

from forecaster.shell.signals import Signals


def main() -> None:
    """Run the command that the arguments name; the process ends with its exit code.

    The default of USR1 and HUP is to end the process, and importing jax takes seconds: for `run`, handlers
    have to be there before anything else is loaded.
    """
    signals = Signals().install() if sys.argv[1:2] == ["run"] else None
    from forecaster import cli  # noqa: PLC0415

    sys.exit(cli.main(signals))


if __name__ == "__main__":
    main()
