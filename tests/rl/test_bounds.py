"""Checks of configuration fields: which values pass, the message for the others, and the field names in it."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, field
from typing import Any

import pytest

from rl.bounds import at_least, between, layers, positive, require
from rl.errors import BadSetting, config_path


@dataclass(frozen=True)
class Inner:
    x: Any = 1
    other: bool = True


@dataclass(frozen=True)
class Middle:
    the_inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True)
class Outer:
    y: int = 1
    middle: Middle = field(default_factory=Middle)


NAN, INF = float("nan"), float("inf")

CASES = [
    (lambda c: at_least(c, 1, "x"), [1, 2.5, 10**9], [0, 0.99, -1, NAN], "at least 1"),
    (lambda c: at_least(c, 1, "x"), [1], [INF], "a finite number, at least 1"),
    (lambda c: at_least(c, 1, "x", unit="step"), [1], [0], "at least 1 step"),
    (lambda c: at_least(c, 0, "x", unit="steps"), [0], [-1], "0 or more steps"),
    (lambda c: at_least(c, 0, "x", unit="steps", zero="no limit"), [0], [-1], "0 (no limit) or more steps"),
    (lambda c: positive(c, "x"), [1e-9, 7], [0, -1.0, NAN], "a positive number"),
    (lambda c: positive(c, "x"), [1], [INF], "a finite positive number"),
    (lambda c: positive(c, "x", unit="seconds"), [1], [0], "a positive number of seconds"),
    (lambda c: between(c, 0, 1, "x"), [0, 0.5, 1], [-0.1, 1.1, NAN, INF], "a number from 0 to 1"),
    (lambda c: between(c, 0, 1, "x", above=True), [0.5, 1], [0, 2], "a number above 0 to 1"),
    (lambda c: between(c, 0, 1, "x", below=True), [0, 0.5], [-1, 1], "a number from 0 to below 1"),
    (lambda c: between(c, 0, 2, "x", above=True, below=True), [1], [0, 2], "a number above 0 and below 2"),
    (lambda c: between(c, 1, 10**8, "x", what="items"), [1, 10**8], [0, 10**8 + 1], "items from 1 to 100_000_000"),
    (lambda c: layers(c, "x"), [(1,), (7, 8)], [(), (0,), (3, 0)], "at least one layer of at least 1 unit"),
]


@pytest.mark.parametrize(("check", "good", "bad", "wanted"), CASES)
def test_a_check_accepts_good_values_and_says_what_to_write_instead_of_bad_ones(check, good, bad, wanted):
    for value in good:
        check(Inner(value))
    for value in bad:
        with pytest.raises(BadSetting) as error:
            check(Inner(value))
        assert str(error.value).startswith("Inner.x is ")
        assert str(error.value).endswith(f": write {wanted}")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (2.0, "2"),
        (0.1234567891, "0.1234567891"),
        (1e-6, "1e-06"),
        ("a b", "'a b'"),
        ((0, 2), "0 2"),
        (100_000, "100_000"),
        (1e6, "1_000_000"),
    ],
)
def test_the_message_shows_the_value_as_a_user_would_write_it(value, shown):
    with pytest.raises(BadSetting, match="x is ") as error:
        require(False, Inner(value), "x", "another")
    assert str(error.value) == f"Inner.x is {shown}: write another"


def test_config_path_finds_a_nested_configuration():
    assert config_path(Outer, Inner) == "middle.the_inner."
    assert config_path(Outer, Middle) == "middle."
    assert config_path(Outer, Outer) == ""
    assert config_path(Middle, Outer) is None


def test_only_field_references_are_replaced_by_full_paths():
    error = BadSetting(Inner, "x", "is `1`, below `y`: write `other: false`, or less than `x`")
    assert str(error) == "Inner.x is `1`, below `y`: write other: false, or less than x"
    assert error.render_in(Outer, lambda path: f"<{path}>") == (
        "<middle.the_inner.x> is `1`, below `y`: write <middle.the_inner.other: false>, or less than <middle.the_inner.x>"
    )
    assert error.render_in(int, str) == str(error)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # Ray carries them
