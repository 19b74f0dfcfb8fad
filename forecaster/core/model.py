"""The recurrent network and its quantile head, as pure functions of a flat dictionary of parameters.

In come the inputs of `features`; out go quantiles of the next `horizon` values, relative to the last value and in
units of the running scale. The carry is one flat vector a series and is opaque outside this file (its layout differs
between the cells). The only file that imports flax: modules are NNX, split once and run under plain `jax.jit`.
"""

from functools import lru_cache
from typing import Annotated, Any, Literal, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator

from forecaster.core import covariates, features, stats
from forecaster.core.spec import Spec

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

Params = dict[str, Array]


class NetworkSpec(Spec):
    """Shape of the network and of what it forecasts."""

    cell: Literal["gru", "lstm", "rnn"] = Field("gru", description="Recurrent cell.")
    hidden: int = Field(64, ge=1, le=1024, description="Units of each recurrent layer.")
    layers: int = Field(1, ge=1, le=4, description="Recurrent layers, stacked.")
    dropout: float = Field(
        0.1, ge=0.0, lt=1.0, description="Share of a layer's outputs dropped while training."
    )
    context_length: int = Field(
        128, ge=8, le=1024, description="Steps of the window from which a carry is warmed up again."
    )
    warm_up: int = Field(24, ge=2, description="Steps before a series is forecast with the network.")
    horizon: int = Field(12, ge=1, le=64, description="Number of steps ahead.")
    levels: tuple[float, ...] = Field(LEVELS, description="Quantile levels, increasing, with 0.5 among them.")

    @field_validator("levels")
    @classmethod
    def _increasing(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < q < 1 for q in levels) or list(levels) != sorted(set(levels)) or 0.5 not in levels:
            raise ValueError("levels must increase within (0, 1) and contain 0.5")
        return levels

    @model_validator(mode="after")
    def _warm_up_fits(self) -> Self:
        if self.warm_up > self.context_length:
            raise ValueError("warm_up cannot be longer than context_length")
        return self

    @property
    def median(self) -> int:
        """Index of the level 0.5."""
        return self.levels.index(0.5)

    @property
    def carry_size(self) -> int:
        """Floats of carry a series."""
        return self.hidden * self.layers * (2 if self.cell == "lstm" else 1)


class ModelSpec(NetworkSpec):
    """A network and what it sees: a model is of use only to ticks that carry the same covariates."""

    covariates: tuple[str, ...] = Field((), description="Names of the covariates, in order.")

    @property
    def inputs(self) -> int:
        """Number of recurrent inputs."""
        return features.RECURRENT + covariates.SIGNALS * len(self.covariates)


class Card(Spec):
    """Where a model comes from: enough to make it again from the log."""

    version: str = ""
    parent: str = ""
    created_s: float = 0.0
    """The newest event time that it learned from: the same log makes the same card, but for the next field."""
    made_s: float = 0.0
    """When it was made, by the clock of who made it; 0: not known, as of models of earlier releases."""
    seed: int = 0
    steps_taken: int = 0
    first_share: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """The network's in the mix of a series in which nothing was judged yet."""
    offsets: dict[str, tuple[int, int]] = Field(default_factory=dict)
    scores: dict[str, dict[str, float]] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)


class Model(NamedTuple):
    """A network ready to serve: what it looks like, its parameters, and the season lengths found in its history."""

    spec: ModelSpec
    params: Params
    periods: Array  # int32 (stats.SEASONS,), steps; 0: none
    card: Card
    judged: Params | None = (
        None  # as they were judged, before they were taught what was held out; None: these
    )

    @property
    def as_judged(self) -> "Model":
        """The network that knows nothing of the hold-out that it was judged on: what comparisons are made with."""
        return self if self.judged is None else self._replace(params=self.judged, judged=None)

    @property
    def version(self) -> str:
        """The name under which the models topic keeps it."""
        return self.card.version


class Norm(nnx.Module):
    """Standardisation of inputs and outputs, measured once on what a model was first trained on; not learned."""

    def __init__(self, spec: ModelSpec) -> None:
        inputs, direct = spec.inputs, features.direct_size(spec.horizon)
        self.input_mean, self.input_rate = nnx.Param(jnp.zeros(inputs)), nnx.Param(jnp.ones(inputs))
        self.direct_mean, self.direct_rate = nnx.Param(jnp.zeros(direct)), nnx.Param(jnp.ones(direct))
        self.out = nnx.Param(jnp.ones(spec.horizon))


class Network(nnx.Module):
    """Stacked cells, then a head over the last layer's output and the direct inputs."""

    def __init__(self, spec: ModelSpec, rngs: nnx.Rngs) -> None:
        make: Any = {"gru": nnx.GRUCell, "lstm": nnx.OptimizedLSTMCell, "rnn": nnx.SimpleCell}[spec.cell]
        sizes = [spec.inputs] + [spec.hidden] * (spec.layers - 1)
        self.cells = nnx.List([make(size, spec.hidden, rngs=rngs) for size in sizes])
        direct = features.direct_size(spec.horizon) + spec.inputs
        out = spec.horizon * len(spec.levels)
        self.norm = Norm(spec)
        self.blend = nnx.Linear(spec.hidden + direct, spec.hidden, rngs=rngs)
        self.out = nnx.Linear(spec.hidden, out, rngs=rngs)
        self.skip = nnx.Linear(direct, spec.horizon, use_bias=False, rngs=rngs)
        self.gate = nnx.Linear(spec.hidden, features.CANDIDATES * spec.horizon, rngs=rngs)
        self.width = nnx.Linear(spec.hidden, spec.horizon, rngs=rngs)


@lru_cache
def _graph(spec: ModelSpec) -> Any:
    return nnx.split(nnx.eval_shape(lambda: Network(spec, nnx.Rngs(0))))[0]


def _network(spec: ModelSpec, params: Params) -> Network:
    """The module with these parameters; built while tracing only, it costs nothing in a compiled program."""
    paths = (
        (tuple(int(part) if part.isdigit() else part for part in name.split(".")), p)
        for name, p in params.items()
    )
    graph = _graph(spec)  # pyright: ignore[reportArgumentType] - a spec is frozen, hence hashable
    return nnx.merge(graph, nnx.from_flat_state({path: nnx.Param(p) for path, p in paths}))


def init(spec: ModelSpec, seed: int) -> Params:
    """Fresh parameters by name. Drawn with numpy: jax would compile each initialiser, for seconds.

    Recurrent matrices are orthogonal gate by gate (Saxe et al. 2013, arXiv:1312.6120), the others normal with variance
    1 / inputs (LeCun), what makes the output small, biases 0.
    """
    rng = np.random.default_rng(seed)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 1:
            return np.ones(shape) if name in _RATES else np.zeros(shape)
        if "dense_h" in name:
            gates = shape[1] // spec.hidden
            return np.concatenate(
                [np.linalg.qr(rng.normal(size=(shape[0], shape[0])))[0] for _ in range(gates)], 1
            )
        return rng.normal(size=shape) * shape[0] ** -0.5 * _SMALL.get(name.partition(".")[0], 1.0)

    return {name: jnp.asarray(draw(name, p.shape), jnp.float32) for name, p in sorted(shapes(spec).items())}


_RATES = frozenset({"norm.input_rate", "norm.direct_rate", "norm.out"})
_SMALL = {"out": 0.1, "skip": 0.0, "gate": 0.0, "width": 0.0}


def shapes(spec: ModelSpec) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of the parameters by name."""
    state = nnx.split(nnx.eval_shape(lambda: Network(spec, nnx.Rngs(0))))[1]
    return {".".join(map(str, path)): p.get_value() for path, p in nnx.to_flat_state(state)}


def untrained(spec: ModelSpec) -> Model:
    """A model that says nothing: what serves until the first one is trained (version "").

    It brings the usual seasons, so that the simple experts know them by then.
    """
    params = {name: jax.device_put(np.zeros(p.shape, np.float32)) for name, p in shapes(spec).items()}
    periods = np.array(stats.COMMON_PERIODS, np.int32)
    return Model(
        spec, params, jax.device_put(periods), Card()
    )  # jnp.zeros would compile, once for each shape


def initial_carry(spec: ModelSpec, batch: int) -> Float[Array, "batch unit"]:
    """The carry of a series that has seen nothing."""
    return jnp.zeros((batch, spec.carry_size), jnp.float32)


def _unpack(spec: ModelSpec, carry: Array) -> list[Any]:
    parts = jnp.split(carry, carry.shape[-1] // spec.hidden, axis=-1)
    return list(zip(parts[::2], parts[1::2], strict=True)) if spec.cell == "lstm" else parts


def _pack(carries: list[Any]) -> Array:
    return jnp.concatenate(jax.tree.leaves(carries), axis=-1)


def step(
    spec: ModelSpec, params: Params, carry: Float[Array, "batch unit"], x: Float[Array, "batch feature"]
) -> tuple[Float[Array, "batch unit"], Float[Array, "batch hidden"]]:
    """Advance the carry by one step; also the last layer's output, which the head reads."""
    net, carries = _network(spec, params), _unpack(spec, carry)
    y = _standard(x, net.norm.input_mean, net.norm.input_rate)
    for i, cell in enumerate(net.cells):
        carries[i], y = cell(carries[i], y)
    return _pack(carries), y


def unroll(
    spec: ModelSpec,
    params: Params,
    carry: Float[Array, "batch unit"],
    xs: Float[Array, "batch time feature"],
    mask: Array | None = None,
    key: Array | None = None,
) -> tuple[Float[Array, "batch unit"], Float[Array, "batch time hidden"]]:
    """Advance over `time` steps; steps that `mask` (batch, time) leaves out do not touch the carry.

    With a `key`, outputs between and after the layers are dropped out, never the recurrent path
    (Zaremba et al. 2014, arXiv:1409.2329).
    """
    net, carries = _network(spec, params), _unpack(spec, carry)
    ys = jnp.swapaxes(_standard(xs, net.norm.input_mean, net.norm.input_rate), 0, 1)
    kept = jnp.ones(ys.shape[:2], bool) if mask is None else jnp.swapaxes(mask, 0, 1)
    for i, cell in enumerate(net.cells):

        def advance(c: Any, item: tuple[Array, Array], cell: Any = cell) -> tuple[Any, Array]:
            y, keep = item
            moved, out = cell(c, y)
            return jax.tree.map(lambda new, old: jnp.where(keep[:, None], new, old), moved, c), out

        carries[i], ys = jax.lax.scan(advance, carries[i], (ys, kept))
        if key is not None and spec.dropout > 0:
            keep = jax.random.bernoulli(jax.random.fold_in(key, i), 1 - spec.dropout, ys.shape)
            ys = jnp.where(keep, ys / (1 - spec.dropout), 0.0)
    return _pack(carries), jnp.swapaxes(ys, 0, 1)


def _standard(x: Array, mean: Any, rate: Any) -> Array:
    return jnp.clip((x - mean.get_value()) * rate.get_value(), -FARTHEST, FARTHEST)


def head(
    spec: ModelSpec,
    params: Params,
    y: Float[Array, "batch hidden"],
    x: Float[Array, "batch feature"],
    direct: Float[Array, "batch feature"],
) -> Float[Array, "horizon level batch"]:
    """The quantile of each level and step ahead as the network draws it, which need not be in order.

    Every level is a sum of its own function of the hidden units and of two parts that all levels of a step share: a
    line through the inputs, and the candidate forecasts, each weighed by a gate. What is its own is multiplied by a
    width, which a step's levels share as well: an hour in which nothing moves narrows all of them at once. All in
    squashed scales, so that a forecast of a thousand scales is within reach.
    """
    net = _network(spec, params)
    known = _standard(direct, net.norm.direct_mean, net.norm.direct_rate)
    seen = jnp.concatenate([_standard(x, net.norm.input_mean, net.norm.input_rate), known], axis=-1)
    hidden = nnx.silu(net.blend(jnp.concatenate([y, seen], axis=-1)))
    candidates = features.candidates(known, spec.horizon)
    blended = (net.gate(hidden).reshape(candidates.shape) * candidates).sum(1)
    shared = (net.skip(seen) + blended).T
    own = (hidden @ net.out.kernel.get_value()).T.reshape(spec.horizon, len(spec.levels), -1)
    bias: Any = net.out.bias
    start = bias.get_value().reshape(spec.horizon, len(spec.levels), 1)
    width = jnp.exp(jnp.clip(net.width(hidden), *WIDTHS)).T
    unit = net.norm.out.get_value()[:, None, None]
    return features.unsquash((own * unit + start) * width[:, None] + shared[:, None] * unit)


def quantiles(
    spec: ModelSpec, params: Params, y: Array, x: Array, direct: Array
) -> Float[Array, "horizon level batch"]:
    """What `head` draws, in order."""
    return in_order(head(spec, params, y, x, direct), spec.median)


def in_order(quantiles: Float[Array, "*at level batch"], median: int) -> Float[Array, "*at level batch"]:
    """Crossing quantiles pushed outward from the median, which stays: each at least as far out as the one inside it."""
    level = [quantiles[..., i, :] for i in range(quantiles.shape[-2])]
    for i in range(median + 1, len(level)):
        level[i] = jnp.maximum(level[i], level[i - 1])
    for i in reversed(range(median)):
        level[i] = jnp.minimum(level[i], level[i + 1])
    return jnp.stack(level, axis=-2)


def standardised(
    spec: ModelSpec, params: Params, inputs: np.ndarray, direct: np.ndarray, target: np.ndarray
) -> Params:
    """Fresh parameters fitted to what they will see: `inputs` and `direct` (n, feature), `target` (n, horizon).

    An input that hardly varies here is not heard, ever.
    The head starts from the quantiles that the targets have, around the last value, wherever the inputs say nothing.
    """
    changes = np.asarray(jax.jit(features.squash)(target))
    start = np.quantile(changes, spec.levels, axis=0).T
    start = np.sort(start - start[:, spec.median, None], axis=1)
    known: dict[str, np.ndarray] = {
        "norm.input_mean": inputs.mean(0),
        "norm.input_rate": _rate(inputs),
        "norm.direct_mean": direct.mean(0),
        "norm.direct_rate": _rate(direct),
        "norm.out": np.maximum(np.abs(changes).mean(0), 1e-3),
        "out.bias": start.reshape(-1),
    }
    return params | {name: jnp.asarray(value, jnp.float32) for name, value in known.items()}


def _rate(x: np.ndarray) -> np.ndarray:
    """One over the spread, but no more than one over USUAL_SPREAD; 0 for what hardly varies."""
    with np.errstate(invalid="ignore"):  # what is not finite is not heard either
        spread = x.std(0)
    usual = np.maximum(spread, USUAL_SPREAD)
    return np.divide(1.0, usual, out=np.zeros_like(spread), where=spread >= LEAST_SPREAD)


def hears(params: Params) -> np.ndarray:
    """Which inputs change what the network says; bool (recurrent and direct inputs,)."""
    return np.concatenate([np.asarray(params[name]) != 0 for name in HEARING])


def without(params: Params, unheard: features.Inputs) -> Params:
    """The same, but these inputs are not heard."""
    rates = [np.array(params[name]) for name in HEARING]
    for rate, at in zip(rates, unheard, strict=True):
        rate[at] = 0.0
    return params | {name: jnp.asarray(rate) for name, rate in zip(HEARING, rates, strict=True)}


HEARING = "norm.input_rate", "norm.direct_rate"  # by which inputs are standardised; 0: not heard
LEAST_SPREAD = 1e-3  # of an input that is heard
USUAL_SPREAD = 0.1  # one of less is not blown up: the first gap after a regular history would drown all else
FARTHEST = 8.0  # spreads; inputs farther from the mean say no more
WIDTHS = -6.0, 3.0  # logarithms of the least and the largest
