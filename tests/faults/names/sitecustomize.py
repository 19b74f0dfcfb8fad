"""A resolver that does what a file says, for processes that have this folder on their PYTHONPATH.

`RESOLVER` names the file. In it is one word: `slowly`, `wrongly` or `never`; without it names are resolved as usual.
"""

import os
import socket
import time
from pathlib import Path
from typing import Any

SLOW_S = 1.5
NOBODY = "127.0.0.66"  # an address of loopback at which nobody listens

_resolve = socket.getaddrinfo


def _getaddrinfo(host: Any, *more: Any, **options: Any) -> Any:
    path = Path(os.environ["RESOLVER"])
    how = path.read_text() if path.exists() else ""
    if how == "never":
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    if how == "slowly":
        time.sleep(SLOW_S)
    return _resolve(NOBODY if how == "wrongly" else host, *more, **options)


socket.getaddrinfo = _getaddrinfo
