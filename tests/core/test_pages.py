"""The bytes of pages, swaps and loans: there and back, refused when they are not whole, and as they once were."""

import base64
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forecaster.core import pages
from forecaster.core.birth import unlent
from forecaster.core.pages import Column, Lent, Member, OpenBar, Page, Refusal, Skip, Swap
from forecaster.core.table import SLOTS, Series, slot_of
from tests.folds import SPEC

REALS = st.floats(allow_nan=False)
OFFSETS = st.integers(-1, 2**63 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BARS = st.builds(OpenBar, OFFSETS, st.integers(0, 2**40), *[REALS] * 5, OFFSETS)
MEMBERS = st.builds(
    Member,
    NAMES,
    OFFSETS,
    st.just(0),
    REALS,
    st.booleans(),
    *[REALS] * 3,
    st.none() | st.integers(-(2**63), 2**63 - 1),
    st.none() | st.integers(-(2**40), 2**40),
    REALS,
    st.lists(BARS, max_size=3, unique_by=lambda bar: bar.index).map(tuple),
)
COLUMNS = st.builds(
    Column,
    st.sampled_from(["value", "carry"]),
    st.just("float32"),
    st.lists(st.integers(1, 9), max_size=3).map(tuple),
    st.binary(max_size=99),
)
PAGES = st.builds(
    Page,
    NAMES,
    NAMES,
    OFFSETS,
    st.integers(0, 9),
    st.integers(1, 9),
    NAMES,
    REALS,
    st.none() | REALS,
    st.lists(NAMES, max_size=3).map(tuple),
    st.lists(MEMBERS, max_size=4).map(tuple),
    st.lists(COLUMNS, max_size=4).map(tuple),
)
SWAPS = st.builds(Swap, NAMES, OFFSETS, NAMES, NAMES)

SKIPS = st.builds(Skip, NAMES, OFFSETS, OFFSETS, OFFSETS)


@given(PAGES | SWAPS | SKIPS)
def test_there_and_back(stored: Page | Swap | Skip) -> None:
    assert pages.decode(pages.encode(stored)) == stored


@given(
    st.builds(Page, *[st.just("x")] * 2, *[OFFSETS] * 3, NAMES, REALS, REALS, *[st.just(())] * 3), st.data()
)
def test_bytes_that_were_cut_or_changed_are_refused(page: Page, data: st.DataObject) -> None:
    whole = pages.encode(page)
    at = data.draw(st.integers(0, len(whole) - 1))
    assert pages.decode(whole[:at]) is Refusal.DAMAGED
    changed = bytearray(whole)
    changed[at] ^= data.draw(st.integers(1, 255))
    newer = at == 4 and changed[4] > pages.SCHEMA
    if at != 4 or newer:  # an older schema would be one that this release reads
        assert pages.decode(bytes(changed)) is (Refusal.NEWER if newer else Refusal.DAMAGED)


@given(st.binary(max_size=200))
def test_bytes_of_somebody_else_are_refused(data: bytes) -> None:
    assert pages.decode(data) is Refusal.DAMAGED


def test_what_is_whole_but_says_something_else_is_refused() -> None:
    swap = msgspec.to_builtins(Swap("s", 1, "v2", "v1"))
    for change in ({"offset": "far"}, {"type": "swop"}, {"version": None}):
        assert pages.decode(sealed(swap | change)) is Refusal.DAMAGED
    assert pages.decode(sealed(swap)) == Swap("s", 1, "v2", "v1")
    assert pages.decode(sealed(swap | {"more": 1})) == Swap("s", 1, "v2", "v1")


def sealed(packed: Any) -> bytes:
    """Anything in the envelope of a page."""
    body = pages.zstandard.compress(msgspec.msgpack.encode(packed))
    return b"fcst" + bytes([pages.SCHEMA]) + pages._digest(body) + body


@given(MEMBERS)
def test_a_series_is_the_same_after_it_was_kept(member: Member) -> None:
    series = Series(member.name, 3)
    pages.restore(member, series)
    assert pages.to_member(series, 0) == member
    assert series.row == 3


def test_a_loan_is_the_same_after_it_was_kept() -> None:
    loan = unlent(SPEC)
    lent = pages.decode(pages.encode(pages.to_lent("s", "l", 7, loan)))
    assert isinstance(lent, Lent)
    assert lent.stretch == 7
    for kept, made in zip(pages.to_loan(lent), loan, strict=True):
        np.testing.assert_array_equal(kept, np.asarray(made))
        assert kept.dtype == made.dtype


def test_columns_without_all_their_bytes_raise() -> None:
    (column,) = pages.to_columns(["value"], [np.ones((2, 3), np.float32)])
    assert pages.to_array(column, 2).tolist() == [[1, 1, 1]] * 2
    with pytest.raises(ValueError, match="reshape"):
        pages.to_array(column, 3)


@given(NAMES)
def test_a_series_is_in_one_bucket_whatever_their_number(name: str) -> None:
    slot = slot_of(name)
    assert 0 <= slot < SLOTS
    for buckets in (1, 2, 64, SLOTS):
        assert sum(slot in range(b, SLOTS, buckets) for b in range(buckets)) == 1


# --- as they were once written: what this release has to read ---

RECORDED: dict[str, tuple[str, pages.Stored]] = {
    "page of schema 1": (
        (
            "ZmNzdAFhW2W6S4as2DG6n0EbeJMUKLUv/WBIAF0IAMIPOzVwa3P8n0fwyH6m+NaXMFnm07Kt6WLFwhIpha/s3u1WSWUxB7BU"
            "oTQI38fvtPQRifJ6vmySArG7HSa6BT6SN1FX1oxmx5nsOJnuDgD4VEzU3S7O3XCdnAzmNw1ndWb6AHVDGsJTxVDGUCqYgFHI"
            "wiOYgFHIw1HF7s7o7m6NKobRgMTAenZVq3PhvXVLcy1HOs3UaTDf8Tzlcm753A2JHREbD+FTMCs161daMKZOs9XrrXdZ+hxd"
            "xya2vsoDdP0prR91iWlJhgWJQgICNUUOwIvrRWbfY/O6Ddbvy+m2UtCnxfU/r0hu49zlbigCCgBQEADomCUTmsPLrPLzDtYe"
            "J8J4ZCoXZ0OJAg=="
        ),
        Page(
            source="forecaster:ticks",
            layout="0123456789abcdef",
            offset=4711,
            bucket=1,
            buckets=2,
            version="v2",
            watermark_s=1.7e9 + 0.5,
            swept_s=None,
            versions=("v2", "v1"),
            members=(
                Member(
                    name="boiler-7",
                    born=12,
                    carry=1,
                    base=71.25,
                    fresh=False,
                    stepped_s=1.7e9,
                    time_s=1.7e9,
                    value=71.5,
                    sequence=None,
                    closed=28333332,
                    level=71.5,
                    bars=(OpenBar(28333333, 2, 143.0, 71.0, 72.0, 72.0, 1.7e9 + 0.5, 4710),),
                ),
            ),
            columns=(
                Column("count", "int32", (), b"\x05\0\0\0"),
                Column("value", "float32", (2,), b"\0\0\x80\x3f\0\0\0\x40"),
            ),
        ),
    ),
    "swap of schema 1": (
        (
            "ZmNzdAG7dGHdE6t7A0Ow8fOydlGIKLUv/SBEIQIAhaR0eXBlpHN3YXCmc291cmNlsGZvcmVjYXN0ZXI6dGlja3Omb2Zmc2V0"
            "zRAAp3ZlcnNpb26idjKocHJldmlvdXOidjE="
        ),
        Swap("forecaster:ticks", 4096, "v2", "v1"),
    ),
    "skip of schema 1": (
        (
            "ZmNzdAFDPrjGwU+CTnjo+bfO7w5OKLUv/SA96QEAhaR0eXBlpHNraXCmc291cmNlsGZvcmVjYXN0ZXI6dGlja3Omb2Zmc2V0"
            "zRAApXVudGlszRBkpXRpY2tzYg=="
        ),
        Skip("forecaster:ticks", 4096, 4196, 98),
    ),
    "loan of schema 1": (
        (
            "ZmNzdAFNbQjkGP9djS6LFxyqyJLsKLUv/SBjGQMAhaR0eXBlpGxvYW6mc291cmNlsGZvcmVjYXN0ZXI6dGlja3OmbGF5b3V0"
            "sDAxMjM0NTY3ODlhYmNkZWanc3RyZXRjaAKnY29sdW1uc5GUpXNjYWxlp2Zsb2F0MzKQxARvEoM6"
        ),
        Lent("forecaster:ticks", "0123456789abcdef", 2, (Column("scale", "float32", (), b"o\x12\x83:"),)),
    ),
}


@pytest.mark.parametrize("name", RECORDED)
def test_what_was_written_once_can_still_be_read(name: str) -> None:
    text, expected = RECORDED[name]
    assert pages.decode(base64.b64decode(text)) == expected
