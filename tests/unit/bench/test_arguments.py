from __future__ import annotations

import argparse

import pytest

from bench.arguments import at_least_one, some_of


def test_a_list_has_each_name_once_in_the_order_of_the_known() -> None:
    assert some_of(["a", "b", "c"])("c,a,c") == ["a", "c"]
    with pytest.raises(argparse.ArgumentTypeError, match="unknown: d; known: a, b"):
        some_of(["a", "b"])("a,d")


def test_a_count_is_at_least_one() -> None:
    assert at_least_one("1") == 1
    for text in ("0", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            at_least_one(text)
