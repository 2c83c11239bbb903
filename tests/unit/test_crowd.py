from __future__ import annotations

from time import perf_counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.crowd import Crowd


def test_the_oldest_of_who_has_most() -> None:
    crowd: Crowd[str, int] = Crowd()
    for number, owner in enumerate("abbcc"):
        crowd.add(owner, number)
    assert (crowd.most, crowd.count("b"), crowd.count("nobody")) == (2, 2, 0)
    assert crowd.oldest_of_most() == 1
    crowd.remove("b", 1)
    assert crowd.oldest_of_most() == 3
    crowd.remove("c", 4)
    # All have one: a has had it for longest.
    assert (crowd.most, crowd.oldest_of_most()) == (1, 0)


def test_an_empty_one() -> None:
    crowd: Crowd[str, int] = Crowd()
    crowd.add("a", 1)
    crowd.remove("a", 1)
    assert (crowd.most, crowd.count("a")) == (0, 0)
    with pytest.raises(KeyError):
        crowd.oldest_of_most()


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans())))
def test_it_agrees_with_counting(steps: list[tuple[int, bool]]) -> None:
    """Invariant: `most` is the largest count, and what is offered is the oldest of one who has that many."""
    crowd: Crowd[int, int] = Crowd()
    model: dict[int, list[int]] = {owner: [] for owner in range(5)}
    for number, (owner, add) in enumerate(steps):
        if add:
            crowd.add(owner, number)
            model[owner].append(number)
        elif model[owner]:
            crowd.remove(owner, model[owner].pop(number % len(model[owner])))
        assert [crowd.count(each) for each in model] == [len(each) for each in model.values()]
        assert crowd.most == max(map(len, model.values()))
        if crowd.most:
            assert crowd.oldest_of_most() in [each[0] for each in model.values() if len(each) == crowd.most]


def test_the_cost_does_not_grow_with_what_is_there() -> None:
    def seconds(size: int) -> float:
        crowd: Crowd[int, int] = Crowd()
        for number in range(size):
            crowd.add(0, number)
        begin = perf_counter()
        for _ in range(size):
            crowd.remove(0, crowd.oldest_of_most())
        return (perf_counter() - begin) / size

    assert min(seconds(50_000) for _ in range(3)) < 20 * min(seconds(500) for _ in range(3))
