"""Writes the Grafana dashboards: `python deploy/grafana/build.py` (a test checks that they are current).

Panels come in from panels.py, where each is one thought; the JSON that Grafana wants around it goes out.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from panels import DASHBOARDS, SCOPE, Panel, Row

Json = dict[str, Any]

WIDTH = 24
RUNBOOK = "docs/operations.md"

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, RED, BLUE = "green", "red", "blue"


def _thresholds(panel: Panel) -> Json:
    if panel.limit is not None:
        steps = [{"color": GREEN, "value": None}, {"color": RED, "value": panel.limit}]
    elif panel.good_above is not None:
        steps = [{"color": RED, "value": None}, {"color": GREEN, "value": panel.good_above}]
    else:
        steps = [{"color": BLUE if panel.kind == "stat" else GREEN, "value": None}]
    return {"mode": "absolute", "steps": steps}


def _custom(panel: Panel) -> Json:
    if panel.kind == "state-timeline":
        return {"fillOpacity": 70, "lineWidth": 0}
    if panel.kind != "timeseries":
        return {}
    return {
        "lineWidth": 1,
        "fillOpacity": 25 if panel.stacked else 5,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
        "thresholdsStyle": {"mode": "line" if panel.limit is not None else "off"},
    }


def _options(panel: Panel) -> Json:
    latest = {"calcs": ["lastNotNull"], "fields": "", "values": False}
    options: dict[str, Json] = {
        "timeseries": {
            "legend": {
                "displayMode": "table",
                "placement": "right",
                "showLegend": True,
                "calcs": ["lastNotNull"],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "stat": {"reduceOptions": latest, "colorMode": "value", "graphMode": "area", "textMode": "auto"},
        "bargauge": {"reduceOptions": latest, "displayMode": "basic", "orientation": "horizontal"},
        "state-timeline": {"legend": {"showLegend": False}, "rowHeight": 0.8, "showValue": "never"},
        "table": {"showHeader": True},
    }
    return options[panel.kind] | panel.extra


def _targets(panel: Panel) -> list[Json]:
    table = {"format": "table", "instant": True, "range": False} if panel.kind == "table" else {"range": True}
    return [
        {"refId": chr(ord("A") + n), "datasource": DATASOURCE, "expr": expr, "legendFormat": legend, **table}
        for n, (legend, expr) in enumerate(panel.queries.items())
    ]


def _columns(panel: Panel) -> list[Json]:
    """A table has one line for each set of labels, and a column named after each query."""
    if panel.kind != "table":
        return []
    letters = {f"Value #{chr(ord('A') + n)}": legend for n, legend in enumerate(panel.queries)}
    hidden = dict.fromkeys(("Time", "Value", "__name__", "job"), True)
    return [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": hidden, "renameByName": letters}},
    ]


def _panel(panel: Panel, number: int, x: int, y: int) -> Json:
    limits = {"min": panel.minimum, "max": panel.maximum}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": f"{panel.shows}\n\nHealthy: {panel.healthy}\n\nRunbooks: {RUNBOOK}",
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "thresholds": _thresholds(panel),
                "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"},
                "custom": _custom(panel),
                **{key: value for key, value in limits.items() if value is not None},
            },
            "overrides": [],
        },
        "options": _options(panel),
        "targets": _targets(panel),
        "transformations": _columns(panel),
    }


def _layout(rows: Iterable[Row]) -> list[Json]:
    """Panels from left to right, a new line where the next would not fit."""
    panels: list[Json] = []
    y = 0
    for row in rows:
        heading = {"id": len(panels) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": []}
        panels.append(heading | {"gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1}})
        x, y, tallest = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, tallest = 0, y + tallest, 0
            panels.append(_panel(panel, len(panels) + 1, x, y))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return panels


def _variable(name: str, label: str, query: str, **more: object) -> Json:
    return {
        "type": "query",
        "name": name,
        "label": label,
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": False,
        "multi": False,
        **more,
    }


VARIABLES = [
    {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "refresh": 1},
    _variable("job", "Job", "label_values(forecaster_build_info, job)"),
    _variable(
        "instance",
        "Worker",
        'label_values(forecaster_build_info{job="$job"}, instance)',
        includeAll=True,
        multi=True,
        allValue=".+",
        current={"text": "All", "value": "$__all"},
    ),
    _variable("series", "Listed series", 'label_values(forecaster_series_last_value{job="$job"}, series)'),
]

ANNOTATIONS = [
    ("Model swaps", "purple", f"sum(increase(forecaster_model_swaps_total{{{SCOPE}}}[1m])) > 0"),
    ("Retrains", "blue", f"sum(forecaster_retrain_in_progress{{{SCOPE}}}) > 0"),
]


def _annotation(name: str, color: str, expr: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": color,
        "expr": expr,
        "step": "60s",
        "titleFormat": name,
    }


def dashboard(name: str) -> Json:
    """The dashboard of that name as Grafana reads it."""
    title, rows = DASHBOARDS[name]
    return {
        "uid": f"forecaster-{name}",
        "title": title,
        "tags": ["forecaster"],
        "schemaVersion": 39,
        "version": 1,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": VARIABLES},
        "annotations": {"list": [_annotation(*annotation) for annotation in ANNOTATIONS]},
        "links": [
            {
                "type": "dashboards",
                "title": "Forecaster",
                "tags": ["forecaster"],
                "asDropdown": False,
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "panels": _layout(rows),
    }


def render(name: str) -> str:
    """The text of the dashboard's file."""
    return json.dumps(dashboard(name), indent=1, sort_keys=True) + "\n"


def main(folder: Path) -> None:
    """Write every dashboard into `folder`."""
    for name in DASHBOARDS:
        (folder / f"{name}.json").write_text(render(name), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "dashboards")
