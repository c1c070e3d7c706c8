"""A law's own step is held against its outcomes, and watched."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distq_mpi.environments.guard import guarded
from distq_mpi.environments.laws import law_environment
from distq_mpi.environments.own_step import N_DRAWS, _compare
from distq_mpi.errors import ModelError
from tests.river import River
from tests.unit.test_environments_guard import BITS, Lonely, refuse_noted, transitions

u8 = np.uint64
PAGE = Path(__file__).parents[2] / "docs/environments.md"


class Swimmer(River):
    """The river, swum by the step that the page for users shows."""

    @staticmethod
    def step(state, action, bits, params):  # type: ignore[no-untyped-def]
        length, up, down, treasure = params
        swims = (bits >= down * 2**32) * 1 + (bits >= (1.0 - up) * 2**32) * 1 - 1
        place = min(max(state + (swims if action == 1 else -1), 0), length - 1)
        found = place == length - 1
        return place, treasure if found else -1.0, found


def test_the_step_shown_is_the_step_tested() -> None:
    page = PAGE.read_text()
    (shown,) = re.findall(r"```python\n(    @staticmethod\n    def step.*?)```", page, re.S)
    tested = inspect.getsource(Swimmer.step).replace("  # type: ignore[no-untyped-def]", "")
    assert textwrap.dedent(shown) == textwrap.dedent(tested)


def swimmer(step: Any = None, **kwargs: Any) -> Any:
    law = type("Own", (Swimmer,), {"step": staticmethod(step)} if step else {})
    return law_environment("own", law, kwargs)


@pytest.mark.parametrize("use_compiled", [False, True])
def test_kernels_draw_by_the_step(use_compiled: bool) -> None:
    environment = swimmer(length=9)
    assert environment.steps_itself and not environment.trusted
    assert environment.summary.endswith("3 outcomes each, its own step watched while learning")
    n = 3000
    bits = [u8((2 * k + 1) * 2**31 // n) << u8(32) for k in range(n)]
    new, reward, ended = transitions(guarded(environment), 3, 1, bits, use_compiled)
    counts = np.bincount(new.astype(int), minlength=9)
    assert counts == pytest.approx(n * np.array([0, 0, 0.05, 0.6, 0.35, 0, 0, 0, 0]), abs=2)
    assert np.all(reward == -1.0) and not ended.any()
    new, reward, ended = transitions(guarded(environment), 7, 1, bits, use_compiled)
    assert np.array_equal(new == 8, ended) and np.array_equal(reward == 10.0, ended)


def test_a_step_is_part_of_the_identity() -> None:
    derived = law_environment("own", River, {})
    assert derived.trusted and not derived.steps_itself
    assert swimmer().model_id not in (derived.model_id, swimmer(length=7).model_id)


def slow(state, action, bits, params):  # type: ignore[no-untyped-def]
    """Swims up half as often as it should, where it swims at all."""
    length, up, down, treasure = params
    swims = (bits >= down * 2**32) * 1 + (bits >= (1.0 - 0.5 * up) * 2**32) * 1 - 1
    place = min(max(state + (swims if action == 1 else -1), 0), length - 1)
    return place, treasure if place == length - 1 else -1.0, place == length - 1


def slightly(state, action, bits, params):  # type: ignore[no-untyped-def]
    """Swims up in .40, not .35, of the cases."""
    length, up, down, treasure = params
    swims = (bits >= down * 2**32) * 1 + (bits >= (0.95 - up) * 2**32) * 1 - 1
    place = min(max(state + (swims if action == 1 else -1), 0), length - 1)
    return place, treasure if place == length - 1 else -1.0, place == length - 1


def leaping(state, action, bits, params):  # type: ignore[no-untyped-def]
    return state + 2, -1.0, False


def poor(state, action, bits, params):  # type: ignore[no-untyped-def]
    return max(state - 1, 0), -2.0, False


def two(state, action, bits, params):  # type: ignore[no-untyped-def]
    return state, -1.0


def words(state, action, bits, params):  # type: ignore[no-untyped-def]
    return state, "much", False


def raising(state, action, bits, params):  # type: ignore[no-untyped-def]
    return params[state + 9], -1.0, False


def three(state, action, bits):  # type: ignore[no-untyped-def]
    return state, -1.0, False


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (slow, r"step\(state=\d+, action=1\) does not draw what outcome says: .* came \d+ times"),
        (slightly, r"does not draw what outcome says: .*chi-square .* at \d degrees of freedom"),
        (leaping, r"step\(state=0, action=0\) with bits \d+ gives \(2, -1.0, False\), which no"),
        (poor, r"gives \(0, -2.0, False\), which no outcome with a probability is"),
        (two, r"must return \(next_state, reward, terminated\), not"),
        (words, r"must return \(next_state, reward, terminated\), not"),
        (raising, "raised IndexError"),
        (three, r"step must take \(state, action, bits, params\)"),
    ],
)
def test_steps_that_say_something_else_are_refused(step: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        swimmer(step)


def test_rare_outcomes_are_counted_together_and_sound_counts_pass() -> None:
    chances = {k: 0.0005 for k in range(10)} | {10: 0.995}
    expected = {k: 2 for k in range(10)} | {10: N_DRAWS - 20}
    _compare("sound", chances, expected)
    _compare("one rare", {0: 1e-4, 1: 1 - 1e-4}, {0: 9, 1: N_DRAWS - 9})
    with pytest.raises(ModelError, match="bent does not draw"):
        _compare("bent", chances, {k: 8 for k in range(10)} | {10: N_DRAWS - 80})


class Far(Swimmer):
    """A step that leaves the states of a long river at one place that nobody compared."""

    @staticmethod
    def step(state, action, bits, params):  # type: ignore[no-untyped-def]
        length, up, down, treasure = params
        place = max(state - 1, 0) if action == 0 else state
        if action == 1:
            swims = (bits >= down * 2**32) * 1 + (bits >= (1.0 - up) * 2**32) * 1 - 1
            place = min(max(state + swims, 0), length - 1)
        place = place + (state == 12345) * 10**12
        return place, treasure if place == length - 1 else -1.0, place == length - 1


def test_a_step_that_leaves_its_states_is_noted() -> None:
    environment = guarded(law_environment("far", Far, {"length": 10**6}))
    new, reward, ended = transitions(environment, 12345, 1, BITS, True)
    assert np.all(new == 12345) and not ended.any()
    with pytest.raises(ModelError, match=r"far: step\(state=12345, action=1\): next_state 1000"):
        refuse_noted(environment, Lonely(), 1, 4, range(2))  # type: ignore[arg-type]
