"""The exceptions of forecaster, split by whose fault it is.

    ForecasterError
    ├── ConfigError        ours to mend: the configuration, or what it names
    ├── DataError          theirs: a file or record that cannot be used
    ├── BrokerError        the broker is away or refuses
    │   ├── RefusedError   it refuses us, or we it: credentials, certificates, rights
    │   └── FencedError    another instance took over this one's identity
    ├── BusyError          an address is somebody else's just now
    ├── StuckError         nothing gets on any more, and what could be mended from inside was
    └── BugError           a law of the program was broken: please report it

Expected outcomes (a late tick, a candidate that is not good enough) are values, never exceptions.
"""


class ForecasterError(Exception):
    """Something that an operator should read. `exit_code` is what the process ends with."""

    exit_code = 1


class ConfigError(ForecasterError):
    """The configuration cannot be used; the message lists every problem with key, value and mend."""

    exit_code = 2


class DataError(ForecasterError):
    """A file or a record cannot be used; the message names it and says what was expected."""

    exit_code = 3


class BrokerError(ForecasterError):
    """The broker cannot be reached or refuses what was asked."""

    exit_code = 4


class RefusedError(BrokerError):
    """The broker and this client do not accept each other, or a right is missing: trying again does not help."""


class FencedError(BrokerError):
    """Another instance uses the same identity; this one has to stop."""

    exit_code = 5


class BusyError(ForecasterError):
    """An address that is needed is somebody else's, or not there yet: it may be ours a moment later."""

    exit_code = 4


class StuckError(ForecasterError):
    """The loop, a partition or the way to the broker does not get on; a new process may."""

    exit_code = 6


class BugError(ForecasterError):
    """A law of the program was broken."""

    exit_code = 70
