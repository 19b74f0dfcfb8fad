"""The models topic: every model that was trained, and which one serves.

    codec      a model <-> records: self-contained weights file, checksum, chunks
    registry   records -> the view of the topic at that moment (pure)
    topic      publish, serve, list, roll back, prune; follow without waiting
    convert    what is stored <-> core.model.Model (the only one that imports the network)

On the topic (compacted, one partition): `model/<version>` and `model/<version>/<i>` are the chunks of a
safetensors file whose header carries the card; `serving` is {version, previous, reason}. A version serves
only once `serving` names it, so a writer that dies in the middle changes nothing.
"""

from forecaster.shell.models.codec import Refusal, Refused, Serving, Stored
from forecaster.shell.models.registry import Arrived, NowServing, Registry
from forecaster.shell.models.topic import Entry, Models, ModelsFollower

__all__ = [
    "Arrived",
    "Entry",
    "Models",
    "ModelsFollower",
    "NowServing",
    "Refusal",
    "Refused",
    "Registry",
    "Serving",
    "Stored",
]
