"""Forecasts -> messages of the predictions topic, and back: only here is the prediction's wire format known.

The daemon's `Encoder` turns the arrays of a batch into one JSON message for each forecast; `decode` turns a
message into a `Prediction`, for whoever subscribes (subscribe.py). The JSON Schema under docs/ is made from
that class. Nothing here computes a forecast or decides when one is due.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, NamedTuple

import msgspec
import numpy as np
import orjson
from msgspec import Meta
from numpy.typing import NDArray

from forecaster.errors import BugError, DataError
from forecaster.shell.schema import schema_of

SCHEMA = 1  # of the message; raised when a reader of the old one would misread the new one
DIGITS = 7  # of what is published, counted from the largest distance between a quantile and the last value

Status = Literal["cold", "warming", "ok", "fallback"]
Floats = NDArray[np.float64]


class TickSource(msgspec.Struct, frozen=True):
    """The tick that a prediction answers."""

    topic: str
    partition: Annotated[int, Meta(ge=0)]
    offset: Annotated[int, Meta(ge=0)]


class Prediction(msgspec.Struct, frozen=True):
    """One forecast of one series: a message of the predictions topic, keyed by series."""

    schema: Annotated[int, Meta(ge=1, description="Version of this format.")]
    series: Annotated[str, Meta(min_length=1, description="Series id; also the record's key.")]
    issued_at: Annotated[
        float,
        Meta(
            description="Event time that the forecast starts from, epoch seconds: of the newest tick"
            " used, or the end of the bar that it closed."
        ),
    ]
    last: Annotated[float, Meta(description="The value it starts from: the last one on the grid.")]
    step_s: Annotated[
        float | None, Meta(description="Seconds from step to step; null where each tick is a step.")
    ]
    target_times: Annotated[
        tuple[float, ...] | None,
        Meta(
            description="Epoch seconds of the ends of the bars that are forecast, one for each step; null"
            " where each tick is a step, whose time nobody knows yet."
        ),
    ]
    horizon: Annotated[int, Meta(ge=1, description="Number of steps ahead; step h = 1..horizon.")]
    levels: Annotated[
        tuple[Annotated[float, Meta(gt=0, lt=1)], ...],
        Meta(min_length=1, description="Quantile levels, increasing within (0, 1)."),
    ]
    quantiles: Annotated[
        tuple[tuple[float, ...], ...],
        Meta(
            min_length=1,
            description="quantiles[h-1][i]: the value that the series stays at or below at step h with"
            " probability levels[i]. Finite, and sorted along the levels.",
        ),
    ]
    mean: Annotated[
        tuple[float, ...],
        Meta(
            min_length=1,
            description="mean[h-1]: the mean of the distribution whose quantile function runs straight"
            " between the quantiles of step h and is flat beyond the outermost ones. It minimises the"
            " squared error as far as the quantiles are right; quantile 0.5 minimises the absolute error.",
        ),
    ]
    status: Annotated[
        Status,
        Meta(
            description="Who answered. cold: no network serves yet. warming: the series has fewer steps than"
            " the network needs; widths may come from other series. ok: the network took part. fallback: the"
            " network gave a number that is not finite; the other experts answered."
        ),
    ]
    anomaly: Annotated[
        Annotated[float, Meta(ge=0)] | None,
        Meta(
            description="Where the tick fell in the forecasts made for it: 1 is the edge of their"
            " interval, 0 the middle, 1000 the most; null while there was none, or where none of the levels is on its"
            " side."
        ),
    ]
    model: Annotated[str, Meta(description='Version of the model that served; "" before the first one.')]
    source: Annotated[TickSource, Meta(description="The tick that this answers; unique for each prediction.")]

    def quantile(self, level: float) -> tuple[float, ...]:
        """The forecast at one of the published levels, a value for each step; ValueError where it is none."""
        if level not in self.levels:
            raise ValueError(f"{level:g} is none of the published levels: {', '.join(map(str, self.levels))}")
        i = self.levels.index(level)
        return tuple(step[i] for step in self.quantiles)


_read = msgspec.json.Decoder(Prediction).decode


def decode(message: bytes) -> Prediction:
    """The prediction in a message; DataError where it is none, or of a newer version than this reader."""
    try:
        prediction = _read(message)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        refuse_newer(message)
        raise DataError(f"not a prediction: {error}; the message starts with {message[:60]!r}") from error
    refuse_newer(message, prediction.schema)
    return prediction


def refuse_newer(message: bytes, schema: int = 0) -> None:
    """Raise DataError where a message is, or says that it is, of a version that this reader does not know."""
    schema = schema or schema_of(message)
    if schema > SCHEMA:
        raise DataError(
            f"prediction of schema {schema}, this reader knows up to {SCHEMA}: upgrade forecaster"
        )


# --- encoding ---


class Forecasts(NamedTuple):
    """What a batch has to say. Axes in the order batch, horizon, level; a row for each prediction."""

    series: Sequence[str]
    issued_at: Floats  # (batch,), epoch s
    last: Floats  # (batch,)
    quantiles: Floats  # (batch, horizon, level), sorted along the levels
    mean: Floats  # (batch, horizon)
    status: Sequence[Status]
    partition: Sequence[int]  # with the offset: the tick that is answered
    offset: Sequence[int]
    anomaly: Floats | None = None  # (batch,), NaN where there is none
    target_times: Floats | None = None  # (batch, horizon), epoch s; on bars


class Encoder:
    """Writes the messages of one configuration; what is the same in all of them is written once.

    `step_s` is the length of a bar, None where each tick is a step.
    """

    def __init__(self, ticks_topic: str, levels: Sequence[float], step_s: float | None = None) -> None:
        self._constants = tuple(orjson.dumps(value) for value in (step_s, list(levels), ticks_topic))

    def encode(self, batch: Forecasts, model: str | Mapping[int, str]) -> list[bytes]:
        """One message for each row, in order; `model` is the version that made them, or that of each partition.

        Numbers are rounded to about `DIGITS` digits of the row's own spread, which keeps messages short;
        quantiles stay sorted, and what was equal to `last` still is. BugError for a number that is not
        finite: readers could not parse it.
        """
        rows = len(batch.series)
        if not rows:
            return []
        if not all(np.isfinite(numbers).all() for numbers in (batch.last, batch.quantiles, batch.mean)):
            raise BugError(f"a forecast of {_culprit(batch)!r} is not finite; it must not be published")
        quantiles, mean = rounded(batch.last, batch.quantiles, batch.mean)
        times, anomaly = batch.target_times, batch.anomaly
        row_texts = zip(
            map(orjson.dumps, batch.series),
            _texts(batch.issued_at),
            _texts(batch.last),
            [b"null"] * rows if times is None else [b"[%b]" % row for row in _texts(times)],
            _texts(quantiles),
            _texts(mean),
            map(str.encode, batch.status),
            [b"null"] * rows if anomaly is None else _texts(anomaly.round(4)),
            batch.partition,
            batch.offset,
            strict=True,
        )
        versions = {model} if isinstance(model, str) else set(model.values())
        templates = {version: self._template(mean.shape[1], version) for version in versions}
        if isinstance(model, str) or len(versions) == 1:
            (template,) = templates.values()
            return [template % texts for texts in row_texts]
        by_partition = {partition: templates[version] for partition, version in model.items()}
        return [by_partition[p] % texts for p, texts in zip(batch.partition, row_texts, strict=True)]

    def _template(self, horizon: int, model: str) -> bytes:
        """The message with everything filled in that is the same for the whole batch."""
        constants = (*self._constants, orjson.dumps(model))
        step_s, levels, topic, version = (text.replace(b"%", b"%%") for text in constants)
        return _MESSAGE % (SCHEMA, step_s, horizon, levels, version, topic)


_MESSAGE = (
    b'{"schema":%d,"series":%%b,"issued_at":%%b,"last":%%b,"step_s":%b,"target_times":%%b,'
    b'"horizon":%d,"levels":%b,"quantiles":[[%%b]],"mean":[%%b],"status":"%%b","anomaly":%%b,"model":%b,'
    b'"source":{"topic":%b,"partition":%%d,"offset":%%d}}'
)


def rounded(last: Floats, quantiles: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Quantiles (batch, horizon, level) and mean (batch, horizon) with as many decimals as their row needs.

    What rounds to the same number as the row's last value becomes the last value, so exact ties survive.
    Rounding and that step are both monotone: what was sorted stays sorted.
    """
    spread = np.maximum(quantiles[:, :, -1].max(axis=1) - last, last - quantiles[:, :, 0].min(axis=1))
    largest = np.maximum(np.abs(last) + spread, 1e-300)
    decimals = DIGITS - 1 - np.floor(np.log10(np.maximum(spread, 1e-300)))
    decimals = np.minimum(decimals, 15 - np.ceil(np.log10(largest)))  # float64 holds 15 digits of any number
    unit = 10.0 ** np.clip(decimals, 0, 22)  # powers of ten are exact up to here; finer means nothing
    tie = np.rint(last * unit)

    def round_off(numbers: Floats) -> Floats:
        axes = (slice(None), *(None,) * (numbers.ndim - 1))
        whole = numbers * unit[axes]
        np.rint(whole, out=whole)
        ties = whole == tie[axes]
        whole /= unit[axes]
        np.copyto(whole, last[axes], where=ties)
        return whole

    return round_off(quantiles), round_off(mean)


def _texts(numbers: Floats) -> list[bytes]:
    """The JSON of each row without its outer brackets: one pass over it, then cut. NaN becomes null."""
    text = orjson.dumps(np.ascontiguousarray(numbers), option=orjson.OPT_SERIALIZE_NUMPY)
    depth = numbers.ndim - 1  # brackets around a row
    return text[1 + depth : -1 - depth].split(b"]" * depth + b"," + b"[" * depth)


def _culprit(batch: Forecasts) -> str:
    finite = np.isfinite(batch.quantiles).all(axis=(1, 2)) & np.isfinite(batch.mean).all(axis=1)
    return batch.series[int(np.argmin(finite & np.isfinite(batch.last)))]
