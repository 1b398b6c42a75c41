"""Whole numbers in the spellings that people use for large ones."""

from __future__ import annotations

import pytest

from fabric_ppo.tools.whole_numbers import whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *((text, 10**6) for text in ("1000000", "1e6", "1E6", "1e+6", "1_000_000", "1M", "1m", "1000k", "1.0e6")),
        *((text, 500_000) for text in ("500k", "500K", "0.5M", "5e5", "500_000", "500_000.0")),
        *(("2.5e3", 2500), ("1.5k", 1500), ("2B", 2 * 10**9), ("0", 0), ("0k", 0), ("-3", -3), ("-3k", -3000)),
        *(("+7", 7), ("12345678901234567890123", 12345678901234567890123), ("9007199254740993e0", 2**53 + 1)),
    ],
)
def test_a_whole_number_is_read_exactly(text, number):
    assert whole_number(text) == number
    assert type(whole_number(text)) is int


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1.5",
            "1e-3",
            "0.0001k",
            "",
            "k",
            "e6",
            "1e",
            "1ek",
            "1e3k",
            "1kk",
            "1T",
            "1__0",
            "_1",
            "1_",
            "1,000",
            "0x10",
        ),
        *("nan", "inf", "-inf", "1e400", "1e999999999", "1/2", "many", "None", "True", "1 k 2", ".", "1.2.3"),
        *("9" * 5000 + ".5", "9" * 5000 + "k"),
    ],
)
def test_what_is_no_whole_number_is_refused(text):
    with pytest.raises(ValueError, match=r"is no whole number$"):
        whole_number(text)
