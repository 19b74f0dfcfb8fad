"""forecaster: a fold over the tick log, with a recurrent network inside.

What a program that uses forecaster needs, loaded when it is first asked for: importing this costs nothing.

    for prediction in forecaster.predictions("localhost:9092"): ...
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forecaster.config import Config as Config
    from forecaster.errors import BrokerError as BrokerError
    from forecaster.errors import BugError as BugError
    from forecaster.errors import ConfigError as ConfigError
    from forecaster.errors import DataError as DataError
    from forecaster.errors import FencedError as FencedError
    from forecaster.errors import ForecasterError as ForecasterError
    from forecaster.shell.prediction import Prediction as Prediction
    from forecaster.shell.subscribe import predictions as predictions

__all__ = [
    "BrokerError",
    "BugError",
    "Config",
    "ConfigError",
    "DataError",
    "FencedError",
    "ForecasterError",
    "Prediction",
    "predictions",
]

_HOMES = {"Config": "config", "Prediction": "shell.prediction", "predictions": "shell.subscribe"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("forecaster")
    if name not in __all__:
        raise AttributeError(f"module 'forecaster' has no attribute {name!r}")
    return getattr(import_module(f"forecaster.{_HOMES.get(name, 'errors')}"), name)
