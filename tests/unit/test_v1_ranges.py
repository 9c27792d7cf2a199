"""Range, If-None-Match and Prefer headers, honest and hostile."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.downloads import Unsatisfiable, names_etag, requested_range
from api.events import preferred_wait_s


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("bytes=0-", range(100)),
        ("bytes=0-0", range(1)),
        ("bytes=10-19", range(10, 20)),
        ("BYTES = 10 - 19", range(10, 20)),
        ("bytes=90-500", range(90, 100)),
        ("bytes=-10", range(90, 100)),
        ("bytes=-500", range(100)),
        ("bytes=99-", range(99, 100)),
        ("bytes=20-10", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=--1", None),
        ("bytes=0-" + "9" * 20, range(100)),
        ("bytes=0-" + "9" * 21, None),
        ("bytes=٣-٤", None),
        ("bytes=0x1-2", None),
    ],
)
def test_ranges(header: str | None, expected: range | None) -> None:
    assert requested_range(header, 100) == expected


@given(st.text() | st.from_regex(r"bytes ?= ?\d{0,3} ?- ?\d{0,3}", fullmatch=True), st.integers(0, 200))
def test_whatever_is_asked_for_lies_within_the_file(header: str, size_bytes: int) -> None:
    try:
        part = requested_range(header, size_bytes)
    except Unsatisfiable:
        return
    assert part is None or 0 <= part.start < part.stop <= size_bytes


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 20 + "-"])
def test_unsatisfiable(header: str) -> None:
    with pytest.raises(Unsatisfiable):
        requested_range(header, 100)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        ("", False),
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ("*", True),
        ('"b"', False),
        ("a", False),
    ],
)
def test_etags(header: str | None, expected: bool) -> None:
    assert names_etag(header, '"a"') is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("wait=5", 5),
        ("respond-async, wait=5", 5),
        ("wait=5; strict", 5),
        ('wait="7"', 7),
        ("Wait = 3", 3),
        ("wait=100000", 50),
        ("wait=0", 0),
        ("wait=-1", None),
        ("wait=1.5", None),
        ("wait=x", None),
        ("await=5", None),
        ("wait=" + "9" * 400, None),
    ],
)
def test_waits(header: str | None, expected: float | None) -> None:
    assert preferred_wait_s(header, 50) == expected
