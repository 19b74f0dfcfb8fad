"""The page that `make accuracy` writes: its tables, the peers beside ours, and what it leaves alone."""

from pathlib import Path

import pytest

from benchmarks import accuracy
from tests.shell.test_report import study


def test_the_page_is_made_once_and_then_only_its_tables_change(tmp_path: Path) -> None:
    page = tmp_path / "accuracy.md"
    accuracy.save([study("walk")], page)
    made = page.read_text(encoding="utf-8")
    assert made.startswith("# Accuracy")
    assert "| walk | 2 |" in made
    page.write_text(made + "\n## Ablations\n\nkept\n", encoding="utf-8")
    accuracy.save([study("other", 1)], page)
    again = page.read_text(encoding="utf-8")
    assert "| walk |" not in again
    assert "| other | 2 |" in again
    assert again.endswith("\n## Ablations\n\nkept\n")
    assert again.count(accuracy.BEGIN) == again.count(accuracy.END) == 1


def test_rows_have_as_many_cells_as_the_head_and_tell_the_scores() -> None:
    made = [study("walk"), study("other", 1)]
    lines = [line for line in accuracy.tables(made).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    score = made[0].scorer.overall()
    row = next(line for line in lines if line.startswith("| walk |"))
    for cell in (f"{score.sql:.3f}", f"{score.relative_sql:.3f}", f"{score.coverage_80:.3f} (", "1 of 2"):
        assert cell in row


def test_peers_stand_beside_data_sets_that_they_are_known_on() -> None:
    text = accuracy.tables([study("grid_load"), study("walk")])
    table = text[text.index("Relative sQL beside") :]
    (row,) = [line for line in table.splitlines() if line.startswith("| grid_load |")]
    ours, lightgbm = row.split("|")[2:4]
    assert float(ours) == pytest.approx(study("grid_load").scorer.overall().relative_sql, abs=5e-4)
    assert float(lightgbm) == pytest.approx(0.871 / 3.360, abs=5e-4)
    assert "walk" not in table
    assert "beside others" not in accuracy.tables([study("walk")])
