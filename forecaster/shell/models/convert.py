"""What is stored <-> `core.model.Model`; the only file of the package that imports the network.

A stored model that does not fit its own spec is refused here, before anything serves it. What a later release adds to
a card tells where a model comes from, and is passed over; a spec that is not known whole cannot be computed.
"""

import jax
import numpy as np
from pydantic import ValidationError

from forecaster.core.model import HEARING, Card, Model, ModelSpec, shapes
from forecaster.shell.models.codec import Refusal, Refused, Stored, store

_PERIODS = "periods"
_PARAMS = "params."
_JUDGED = "judged."


def to_stored(model: Model) -> Stored:
    """A model as it is kept."""
    tensors = {_PARAMS + name: np.asarray(param) for name, param in model.params.items()}
    tensors |= {_JUDGED + name: np.asarray(param) for name, param in (model.judged or {}).items()}
    tensors[_PERIODS] = np.asarray(model.periods)
    return store(
        model.version, tensors, model.spec.model_dump(mode="json"), model.card.model_dump(mode="json")
    )


def from_stored(stored: Stored) -> Model | Refused:
    """The model, or why it cannot be used by this release."""
    try:
        spec = ModelSpec.model_validate(stored.spec)
        card = Card.model_validate(stored.card, extra="ignore")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return Refused(stored.version, Refusal.UNUSABLE, f"{where}: {first['msg']}")
    tensors = stored.tensors()
    params, judged = (
        {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        for prefix in (_PARAMS, _JUDGED)
    )
    wanted = {name: param.shape for name, param in shapes(spec).items()}
    params, judged = _wide(params, wanted), _wide(judged, wanted)
    found = [{name: param.shape for name, param in some.items()} for some in (params, judged)]
    if found not in ([wanted, {}], [wanted, wanted]) or _PERIODS not in tensors:
        return Refused(
            stored.version, Refusal.UNUSABLE, "its weights are not of the shapes that its spec asks for"
        )
    params, judged = _deaf(params), _deaf(judged)
    put = jax.device_put  # which compiles nothing; jnp.asarray does, for each new shape
    return Model(spec, put(params), put(tensors[_PERIODS]), card, put(judged) if judged else None)


def _wide(params: dict[str, np.ndarray], shape: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The same with a width of 1 for each step ahead, of which networks of before knew nothing."""
    new = {name: np.zeros(size, np.float32) for name, size in shape.items() if name.startswith("width.")}
    return new | params if params else params


def _deaf(params: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same where inputs that did not vary have the rate 0, by which they are not heard; it was 1 once."""
    return {name: np.where(p == 1, np.float32(0), p) if name in HEARING else p for name, p in params.items()}
