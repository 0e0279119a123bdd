"""`deaths`: the row that keeps killing actors is found, whatever else dies."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ka2l_ray.dataflow.deaths import Register, Suspicion
from ka2l_ray.dataflow.failures import DEATHS


def play(register: Register, shard: int, rows: int, fatal: set[int]) -> dict[int, str]:
    """Begin a shard again and again, as Ray does, with rows that kill the process; returns the rows given up."""
    for _ in range(10_000):
        suspicion, why = register.begins(shard, rows)
        assert not why
        for piece in suspicion.pieces:
            if piece[0] in suspicion.given_up:
                continue
            register.notes(shard, piece=piece)
            if fatal & set(range(*piece)):
                break  # the process ends here
        else:
            register.finishes(shard)
            return dict(suspicion.given_up)
    raise AssertionError("the shard never ends")


@given(st.integers(1, 600), st.data())
def test_every_fatal_row_is_found_and_no_other_is_given_up(rows: int, data: st.DataObject) -> None:
    fatal = data.draw(st.sets(st.integers(0, rows - 1), max_size=3))
    register = Register(1, DEATHS)
    assert set(play(register, 0, rows, fatal)) == fatal
    assert register._deaths <= 1 + len(fatal) * (2 + math.ceil(math.log2(rows) if rows > 1 else 0))


@given(st.integers(2, 4096))
def test_a_fatal_row_in_each_of_many_shards_stops_no_stage(rows: int) -> None:
    register = Register(1, DEATHS)
    for shard in range(10):
        assert set(play(register, shard, rows, {rows // 3})) == {rows // 3}


def test_a_second_actor_at_a_finished_shard_changes_nothing() -> None:
    register = Register(1, DEATHS)
    register.begins(0, 8)
    register.finishes(0)
    register.notes(0, piece=(0, 4))
    register.notes(0, why="late")
    assert register.begins(0, 8)[0] == Suspicion(pieces=((0, 8),))


def test_a_death_between_pieces_halves_nothing() -> None:
    register = Register(1, DEATHS)
    for _ in range(5):
        assert register.begins(0, 8)[0].pieces == ((0, 8),)
        register.notes(0, piece=None)


def test_a_first_death_changes_nothing_a_second_halves() -> None:
    register = Register(1, 100)
    assert register.begins(7, 8)[0].pieces == ((0, 8),)
    assert register.begins(7, 8)[0].pieces == ((0, 8),)
    assert register.begins(7, 8)[0].pieces == ((0, 4), (4, 8))


def test_a_machine_that_goes_away_between_shards_costs_nothing() -> None:
    register = Register(1, 100)
    for shard in range(50):
        register.begins(shard, 8)
        register.finishes(shard)
    assert register.begins(50, 8)[0] == Suspicion(pieces=((0, 8),))


def test_a_row_given_up_has_the_last_error_of_the_actor_that_died_at_it() -> None:
    register = Register(1, 100)
    for _ in range(2):
        register.begins(0, 1)
        register.notes(0, why="AcceleratorError: CUDA error: device-side assert triggered")
    assert register.begins(0, 1)[0].given_up == {0: "AcceleratorError: CUDA error: device-side assert triggered"}


def test_a_stage_whose_actors_only_die_is_stopped_and_says_why() -> None:
    register = Register(1, 3)
    register.begins(0, 64)
    for _ in range(4):
        register.notes(0, why="RuntimeError: no kernel")
        assert register.begins(0, 64)[1] == ""
    register.notes(0, why="RuntimeError: no kernel")
    assert (
        register.begins(0, 64)[1] == "5 actors have died while 0 shards were finished. Last: RuntimeError: no kernel."
    )


@pytest.mark.parametrize("loaded", [True, False])
def test_loads_that_never_end_count_as_deaths(loaded: bool) -> None:
    register = Register(2, 3)
    said = []
    for n in range(40):
        said.append(register.loads(str(n)))
        if loaded:
            register.loaded(str(n))
    assert any(said) is not loaded
