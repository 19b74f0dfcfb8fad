"""What a message costs to decode and to encode, one core, the best of several runs."""

import json
from collections.abc import Callable, Iterator
from timeit import repeat

import numpy as np

from benchmarks.report import Row
from forecaster.core.tick import TickSpec, make_decoder
from forecaster.shell.prediction import Encoder, Forecasts, decode

HORIZON = 12


def run(quick: bool) -> Iterator[Row]:
    """Microseconds a message."""
    share = 10 if quick else 1
    decode_tick = make_decoder(TickSpec())
    tick = json.dumps({"series": "sensor-123", "ts": 1_700_000_000.123, "value": 123.456}).encode()
    us = cost_us(lambda: decode_tick(None, tick, 1_700_000_000_500), 20_000 // share)
    yield Row("decode a tick", us, "µs")
    for levels in (5, 11):
        batch = forecasts(512, HORIZON, levels)
        encoder = Encoder("ticks", np.linspace(0.05, 0.95, levels).round(4).tolist())
        message = encoder.encode(batch, "model-1")[0]
        shape = f"{HORIZON} steps x {levels} levels, {len(message):,} bytes"
        us = cost_us(lambda encoder=encoder, batch=batch: encoder.encode(batch, "model-1"), 20 // share, 512)
        yield Row("encode a prediction", us, "µs", shape)
        us = cost_us(lambda message=message: decode(message), 5_000 // share)
        yield Row("decode a prediction", us, "µs", shape)


def forecasts(rows: int, horizon: int, levels: int, seed: int = 0) -> Forecasts:
    """Random but plausible forecasts of `rows` series: values near 100, a spread near 1."""
    rng = np.random.default_rng(seed)
    last = 100 + rng.normal(size=rows).round(2)
    quantiles = np.sort(last[:, None, None] + rng.normal(size=(rows, horizon, levels)), axis=-1)
    return Forecasts(
        series=[f"sensor-{i}" for i in range(rows)],
        issued_at=1.7e9 + np.arange(rows) * 0.125,
        last=last,
        quantiles=quantiles,
        mean=quantiles.mean(axis=-1),
        status=["ok"] * rows,
        partition=[i % 4 for i in range(rows)],
        offset=list(range(rows)),
    )


def cost_us(call: Callable[[], object], times: int, messages: int = 1) -> float:
    """Microseconds for each message, the best of 7 runs of `times` calls."""
    call()
    return min(repeat(call, number=times, repeat=7)) / times / messages * 1e6
