"""What the terminal shows: it fits, it names what there is, and numbers of any size can be read."""

import numpy as np
import pytest
from rich.console import Console

from forecaster.demo.figures import Figures
from forecaster.demo.view import Stages, State, line, screen
from tests.demo.test_scores import prediction

QUANTILES = np.array([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0]])


def state(series: int, scale: float = 1.0) -> State:
    shown = State("a test", Figures("http://none"), Stages(0.0), hint="Ctrl-C ends")
    for number in range(series):
        for offset in range(5):
            last = scale * (10 + offset)
            shown.add(prediction(f"series-{number:03}", offset, last, last + scale * QUANTILES))
    return shown


def drawn(shown: State, width: int, height: int | None) -> list[str]:
    console = Console(width=width, height=height or 200, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(screen(shown, 61.0, width, height))
    return capture.get().splitlines()


@pytest.mark.parametrize(("width", "height"), [(70, 20), (80, 24), (100, 30), (120, 24), (160, 50)])
@pytest.mark.parametrize("series", [0, 1, 12, 60])
def test_it_fits_the_terminal(width: int, height: int, series: int) -> None:
    lines = drawn(state(series), width, height)
    assert len(lines) <= height


def test_in_a_narrow_terminal_figures_go_on_in_the_next_line() -> None:
    shown = state(1)
    for position in range(9):
        shown.stages.reach(f"stage number {position}", float(position))
    for height in (24, 40):
        lines = drawn(shown, 70, height)
        assert len(lines) <= height
        said = " ".join(" ".join(lines).split())
        assert all(f"stage number {position} {position}.0 s" in said for position in range(9))


def test_what_does_not_fit_is_counted() -> None:
    lines = "\n".join(drawn(state(60), 80, 24))
    shown = lines.count("series-")
    assert f"{60 - shown} more series" in lines


def test_long_names_that_begin_alike_are_told_apart() -> None:
    shown = State("a test", Figures("http://none"), Stages(0.0))
    for number in (1, 2):
        shown.add(prediction(f"ec2_cpu_utilization_{number}", 0, 10.0, 10.0 + QUANTILES))
    rows = [text for text in drawn(shown, 100, 24) if "ec2_cpu" in text]
    assert [row.split()[1] for row in rows] == ["ec2_cpu…zation_1", "ec2_cpu…zation_2"]


def test_names_may_have_brackets() -> None:
    shown = State("a test", Figures("http://none"), Stages(0.0))
    shown.add(prediction("pump[/]x", 0, 10.0, 10.0 + QUANTILES))
    assert any("pump[/]x" in text for text in drawn(shown, 100, 24))


@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1.0, 1e6])
def test_numbers_of_any_size_keep_value_and_band_apart(scale: float) -> None:
    row = next(text for text in drawn(state(1, scale), 160, 24) if "series-" in text)
    numbers = [
        float(word.strip("[],").replace(",", "")) for word in row.split() if word.strip("[],")[:1].isdigit()
    ]
    assert numbers[:7] == pytest.approx([scale * x for x in (14, 14, 13, 15, 14, 12, 16)], rel=1e-2)


@pytest.mark.parametrize(
    ("width", "band"), [(80, "10.0 [9.8, 13.0]"), (120, "10.0 [9.8, 13.0]"), (52, "10.0 ±1.6")]
)
def test_a_skewed_band_shows_its_edges_where_there_is_room(width: int, band: str) -> None:
    shown = State("a test", Figures("http://none"), Stages(0.0))
    shown.add(prediction("skewed", 0, 10.0, 10.0 + np.array([[-1.0, 0.0, 1.2], [-0.2, 0.0, 3.0]])))
    (row,) = (text for text in drawn(shown, width, 24) if "skewed" in text)
    assert "10.0 ±1.1" in row, "a third of the band is not much"
    assert band in row


def test_curves_get_the_room_that_the_numbers_leave() -> None:
    shown = state(1)
    for t in range(5, 100):
        last = 10.0 + t % 7
        shown.add(prediction("series-000", t, last, last + QUANTILES))
    for width in (120, 200):
        (row,) = (text for text in drawn(shown, width, 24) if "series-0" in text)
        assert len(row.rstrip()) == width
        assert sum(c in "▁▂▃▄▅▆▇█" for c in row) > 24


def test_noise_far_below_a_series_numbers_is_nothing() -> None:
    shown = State("a test", Figures("http://none"), Stages(0.0))
    stuck = np.array([[-7e-13, 0.0, 7e-13], [-7e-13, 0.0, 7e-13]])
    shown.add(prediction("stuck", 0, 5.0, 5.0 + stuck))
    shown.add(prediction("night", 0, 7e-13, np.array([[0.0, 7e-13, 1.0], [-1.0, -7e-13, 1.0]])))
    for width in (80, 160):
        lines = "\n".join(drawn(shown, width, 24))
        assert "e-" not in lines
        assert "-0.0" not in lines


def test_stages_are_told_once_and_from_the_daemons_start_on() -> None:
    stages = Stages(100.0)
    assert stages.reach("broker", 101.5) == "broker: 1.5 s after the demo was started"
    assert stages.reach("broker", 102.0) is None
    stages.daemon_started(104.0)
    assert stages.reach("ready", 111.0) == "ready: 7.0 s after the daemon was started"


def test_a_line_says_it_all_before_anything_is_known() -> None:
    assert line(state(0), 12.0).startswith("  12.0 s")
