"""What a message costs to decode and to encode: `python -m benchmarks.encode`. Best of several runs, one"
" core.
"""

import json
from collections.abc import Callable
from timeit import repeat

import numpy as np

from forecaster.core.tick import TickSpec, make_decoder
from forecaster.shell.prediction import Encoder, Forecasts, decode


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


def main() -> None:
    """Print the costs as a table."""
    decode_tick = make_decoder(TickSpec())
    tick = json.dumps({"series": "sensor-123", "ts": 1_700_000_000.123, "value": 123.456}).encode()
    us = cost_us(lambda: decode_tick(None, tick, 1_700_000_000_500), 20_000)
    print(f"decode a tick                {us:6.2f} us")
    for levels in (5, 11):
        batch = forecasts(512, 12, levels)
        encoder = Encoder("ticks", np.linspace(0.05, 0.95, levels).round(4).tolist())
        encoded = encoder.encode(batch, "model-1")
        us = cost_us(lambda encoder=encoder, batch=batch: encoder.encode(batch, "model-1"), 20, 512)
        print(f"encode, 12 steps x {levels:2} levels      {us:6.2f} us, {len(encoded[0])} bytes")
        us = cost_us(lambda encoded=encoded: decode(encoded[0]), 5_000)
        print(f"decode, 12 steps x {levels:2} levels      {us:6.2f} us")


if __name__ == "__main__":
    main()
