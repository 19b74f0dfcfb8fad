"""A series that has come to a new level: what it was before moves along.

Where several values in a row lie equally far from what the past told, and much farther than values usually do, the
level has shifted. What is remembered from before is then read as if it had been at the new level all the time, so that
seasons, means, and all that a network has learned of them hold there at once. A value that is back at the level before
takes that back. A series whose levels did not last lately is not believed.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from forecaster.core.apart import apart

CONFIRM = 4  # values in a row that make a level
FAR = 10.0  # usual distances from which a value may be one of a new level
ALIKE = 0.5  # of their mean distance: how far around it such values lie at most
BACK = 2.0  # usual distances from the level before, within which a value has come back to it ...
BACK_SHARE = 0.25  # ... or of the distance between both levels, if that is more
USUAL_MEMORY = 100.0  # steps over which the usual distance is a mean
YOUNG = 32  # steps of a series that tell what is usual
LASTING = 50  # steps after which a level has lasted
BRIEF = 1.5  # levels lately that did not, from which no other is believed
BRIEF_FORGET = 1 / 500  # of them, at each step
MOST = 2.0**20  # steps that are counted


class Shift(NamedTuple):
    """One a series, float32, shape (batch,); all zero in a newborn one."""

    usual: Array  # distance of a value from what the past told, in units of the value
    run: Array  # values in a row, up to now, that are far from it
    away: Array  # their mean distance
    since: Array  # steps that the newest level has lasted; 0: there is no other
    size: Array  # how much higher it is than the one before
    brief: Array  # levels lately that did not last


STATE = len(Shift._fields)


def observe(
    shift: Shift, gap: Float[Array, " batch"], count: Int[Array, " batch"]
) -> tuple[Shift, Float[Array, " batch"]]:
    """After a value that lies `gap` from what the past told; also by how much the past moves with it.

    `count` is the number of steps before it.
    """
    known, distance = shift.since > 0, jnp.abs(gap)
    young = count < YOUNG
    far = (distance > FAR * shift.usual) & ~young
    seen = jnp.where(young, distance, jnp.minimum(distance, FAR * shift.usual))
    usual = shift.usual + (seen - shift.usual) / jnp.clip(count.astype(jnp.float32) + 1, 1.0, USUAL_MEMORY)

    alike = (shift.run > 0) & (jnp.abs(gap - shift.away) <= ALIKE * jnp.abs(shift.away))
    run = jnp.where(far, jnp.where(alike, shift.run + 1, 1.0), 0.0)
    away = jnp.where(far, jnp.where(alike, shift.away + (gap - shift.away) / run, gap), 0.0)

    near = jnp.maximum(BACK * shift.usual, BACK_SHARE * jnp.abs(shift.size))
    back = far & known & (jnp.abs(gap + shift.size) <= near)
    reached = (run >= CONFIRM) & ~back
    ended = (reached | back) & known & (shift.since < LASTING)
    brief = shift.brief * (1 - BRIEF_FORGET)
    new = reached & (brief < BRIEF)
    over = new | back

    older = jnp.where(known, jnp.minimum(shift.since + 1, MOST), 0.0)
    after = Shift(
        usual,
        run=jnp.where(over, 0.0, run),
        away=jnp.where(over, 0.0, away),
        since=jnp.where(new, CONFIRM, jnp.where(back, 0.0, older)),
        size=jnp.where(new, away, jnp.where(back, 0.0, shift.size)),
        brief=brief + ended,
    )
    moved = jnp.where(new, away, jnp.where(back, -shift.size, 0.0))
    *state, moved = apart(jnp.stack([*after, moved]))
    return Shift(*state), moved


def seen(shift: Shift, values: Array, ago: Array) -> Array:
    """Values as they look from the level of now; each came so many steps before the newest that `shift` knows of.

    `values` and `ago` are (batch, ...).
    """
    since, size = (x.reshape(-1, *(1,) * (ago.ndim - 1)) for x in (shift.since, shift.size))
    return values + jnp.where((since > 0) & (ago >= since), size, 0.0)


def here(shift: Shift, horizon: int) -> Bool[Array, "horizon batch"]:
    """Which forecasts that end now, 1 .. `horizon` steps old, knew of the level of now."""
    return (shift.since == 0) | (jnp.arange(1, horizon + 1)[:, None] <= shift.since - CONFIRM)
