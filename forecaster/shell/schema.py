"""The version of its format that a JSON message names: to be read whatever else of the message has changed."""

import msgspec


class _Versioned(msgspec.Struct, frozen=True):
    schema: int = 0


_decode = msgspec.json.Decoder(_Versioned).decode


def schema_of(message: bytes) -> int:
    """The version, or 0 where the message names none."""
    try:
        return _decode(message).schema
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
