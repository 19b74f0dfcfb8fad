"""How an event time is shown to people."""

from datetime import UTC, datetime


def shown_time(time_s: float) -> str:
    """2026-01-31 12:00:00Z; the number itself where no calendar has it."""
    try:
        return f"{datetime.fromtimestamp(time_s, UTC):%Y-%m-%d %H:%M:%S}Z"
    except (ValueError, OverflowError, OSError):
        return f"{time_s:.16g}"
