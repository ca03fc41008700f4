"""What a step of several conversations costs, and whom a tick waits for."""

from __future__ import annotations

import random

import pytest

from msh_mlx.conversation.ticks import Arrivals, Costs, begin_tick
from msh_mlx.format import FRAME_SECONDS


def costs(*curve: tuple[int, float]) -> Costs:
    made = Costs()
    for size, seconds in curve:
        made.measure(size, seconds)
    return made


def test_a_cost_between_and_beyond_measured_sizes() -> None:
    made = costs((1, 0.010), (2, 0.012), (8, 0.024))
    assert [made.expected(size) for size in (1, 2, 5, 8, 12)] == pytest.approx([0.010, 0.012, 0.018, 0.024, 0.032])


def test_without_a_curve_conversations_cost_as_much_as_one_after_the_other() -> None:
    made = Costs()
    assert made.expected(3) == 0
    made.add(2, 0.010)
    assert made.expected(3) == pytest.approx(0.015)
    assert costs((1, 0.010)).expected(3) == pytest.approx(0.030)


def test_a_cost_never_falls_with_the_number_of_conversations() -> None:
    made = costs((1, 0.010), (2, 0.008))
    assert made.expected(9) == pytest.approx(0.010)


def test_steps_that_take_longer_in_use_raise_the_cost_of_all_sizes() -> None:
    made = costs((1, 0.010), (2, 0.012))
    for _ in range(250):
        made.add(1, 0.020)
    assert made.expected(2) == pytest.approx(0.024)
    for _ in range(250):
        made.add(2, 0.012)
    assert made.expected(1) == pytest.approx(0.010)


def test_a_frame_is_expected_a_frame_after_the_last_one() -> None:
    arrivals = Arrivals()
    arrivals.came("a", 1.0)
    arrivals.came("b", 1.01)
    arrivals.came("a", 1.08)
    assert sorted(arrivals.without([])) == pytest.approx([1.09, 1.16])
    assert arrivals.without(["b"]) == pytest.approx([1.16])
    arrivals.forget("a")
    arrivals.forget("nobody")
    assert arrivals.without([]) == pytest.approx([1.09])


STEP = costs((1, 0.020), (2, 0.022), (16, 0.050))


@pytest.mark.parametrize(
    ("expected", "begin"),
    [
        ([], 0),  # alone
        ([0.030, 0.079], 0),  # nobody is due before the end of a step
        ([0.010], 0.015),  # due: it may be a quarter of a step late
        ([0.010, 0.018, 0.021], 0.023),  # the last of those who are due
        ([-0.004], 0.001),  # a little late
        ([-0.006], 0),  # late: nobody waits for it
    ],
)
def test_a_tick_waits_for_those_who_are_due(expected: list[float], begin: float) -> None:
    assert begin_tick(0.0, [0.0], expected, STEP) == pytest.approx(begin)


def test_a_tick_does_not_wait_so_long_that_the_first_one_would_be_late() -> None:
    # 0.9 · 80 ms − 24 ms for three, counted from when the first came, 40 ms ago
    assert begin_tick(0.04, [0.0, 0.03], [0.055], STEP) == pytest.approx(0.048)
    assert begin_tick(0.06, [0.0, 0.03], [0.065], STEP) < 0.06


def test_nobody_is_late_and_frames_that_come_together_step_together() -> None:
    """A model that steps in 20 to 50 ms, and 16 conversations; in all, only a step's time or two lie before an answer."""
    chance = random.Random(1)
    for spread in (0.0, 0.01, FRAME_SECONDS):
        arrivals, clock = Arrivals(), 0.0
        coming = sorted(
            (chance.uniform(0, spread) + frame * FRAME_SECONDS, who) for who in range(16) for frame in range(50)
        )
        waiting: list[tuple[float, int]] = []
        delays, sizes = list[float](), list[int]()
        while coming or waiting:
            if not waiting:
                clock = max(clock, coming[0][0])
            while coming and coming[0][0] <= clock:
                moment, who = coming.pop(0)
                arrivals.came(who, moment)
                waiting.append((moment, who))
            begin = begin_tick(
                clock, [each[0] for each in waiting], arrivals.without(each[1] for each in waiting), STEP
            )
            if begin > clock:
                clock = min(begin, coming[0][0]) if coming else begin
                continue
            clock += STEP.expected(len(waiting))
            delays += [clock - moment for moment, _ in waiting]
            sizes.append(len(waiting))
            waiting = []
        assert max(delays) < FRAME_SECONDS + STEP.expected(16)
        assert sum(delays) / len(delays) < FRAME_SECONDS
        if spread < FRAME_SECONDS:
            assert max(sizes) == 16
