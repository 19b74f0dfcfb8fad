"""`python -m forecaster.demo`: Ctrl-C ends it at any moment without a traceback, so also while it is being loaded."""

import signal


def main() -> None:
    """Load the demo and run it; while that takes, Ctrl-C just ends the process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from forecaster.demo import live  # noqa: PLC0415

    live.main()


if __name__ == "__main__":
    main()
