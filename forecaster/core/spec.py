"""The base of every stage's configuration.

A stage's knobs are one frozen `Spec` in the stage's own module; `forecaster.config` composes them. A Spec is
checked when it is built and is hashable, so it can be a static argument of a jitted function.
"""

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """Frozen, checked, hashable configuration of one stage; unknown keys and infinite numbers are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
