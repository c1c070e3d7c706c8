"""The learning loop: hand-computed trajectories, and plain Python against compiled code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distq_mpi.environments import exploring_starts
from distq_mpi.environments.base import Environment
from distq_mpi.environments.explicit import explicit_model
from distq_mpi.kernels import loop
from distq_mpi.kernels.draws import RESET, TRANSITION, threefry
from distq_mpi.kernels.exploration import best_of, epsilon_greedy
from tests.driving import Learner
from tests.stand_in import config, random_model

u8 = np.uint64


def corridor(max_episode_steps: int = 0) -> Environment:
    """States 0, 1, 2 and an end: action 0 stays for -1, action 1 moves on for 1, 2, then 10."""
    following, reward, terminated = [], [], []
    for state in range(3):
        following += [state, min(state + 1, 2)]
        reward += [-1.0, (1.0, 2.0, 10.0)[state]]
        terminated += [False, state == 2]
    return explicit_model(
        "corridor", 3, 2, np.arange(7), following, np.ones(6), reward, terminated, [1.0, 0.0, 0.0],
        max_episode_steps=max_episode_steps,
    )  # fmt: skip


def corridor_learner(
    rule: str = "q_learning", limit: int = 0, epsilon: float = 0.0, **changes: Any
) -> Learner:
    """A lane in the corridor with alpha .5, discount .8 and a table that prefers action 1."""
    changes = {"step_size": "constant", "alpha": 0.5, "discount": 0.8, **changes}
    learner = Learner(
        corridor(limit), config(rule=rule, **changes).learn, 1, epsilon=epsilon
    )
    learner.rows.values[...] = [[0.0, 4.0], [0.0, 6.0], [0.0, 8.0]]
    learner.begin()
    return learner


def test_begin_makes_a_transition_and_learns_nothing() -> None:
    learner = corridor_learner()
    assert learner.rows.values.tolist() == [[0.0, 4.0], [0.0, 6.0], [0.0, 8.0]]
    assert not learner.rows.clock.any()
    assert learner.lanes.pack()[0].tolist() == (0, 1, 1, 1.0, False, 0, 0.0)


def test_hand_computed_trajectory_through_termination() -> None:
    learner = corridor_learner()
    learner.learn()  # (0, 1) -> 1 for 1: target 1 + .8 * 6 = 5.8
    assert learner.rows.values[0].tolist() == [0.0, 4.0 + 0.5 * (1 + 0.8 * 6.0 - 4.0)]
    assert learner.lanes.pack()[0].tolist() == (1, 1, 2, 2.0, False, 1, 1.0)
    learner.learn()  # (1, 1) -> 2 for 2: target 2 + .8 * 8 = 8.4
    assert learner.rows.values[1].tolist() == [0.0, 6.0 + 0.5 * (2 + 0.8 * 8.0 - 6.0)]
    assert learner.lanes.pack()[0].tolist() == (2, 1, 2, 10.0, True, 2, 3.0)
    assert learner.totals[[loop.RETURN_SUM, loop.EPISODES]].tolist() == [0.0, 0.0]
    learner.learn()  # (2, 1) ends for 10: no bootstrap; the lane starts again in 0
    assert learner.rows.values[2].tolist() == [0.0, 9.0]
    assert learner.lanes.pack()[0].tolist() == (0, 1, 1, 1.0, False, 0, 0.0)
    assert learner.rows.clock.tolist() == [[0, 1], [0, 1], [0, 1]]
    squares = (1 + 0.8 * 6.0 - 4.0) ** 2 + (2 + 0.8 * 8.0 - 6.0) ** 2 + 2.0**2
    assert learner.totals.tolist() == pytest.approx([13.0, squares, 1.0], rel=1e-15)
    assert learner.totals[loop.EPISODES] == 1.0
    learner.learn()  # the first pair again: it bootstraps from the updated row of 1
    q01, q11 = 4.0 + 0.5 * 1.8, 6.0 + 0.5 * 2.4
    assert learner.rows.values[0, 1] == pytest.approx(q01 + 0.5 * (1 + 0.8 * q11 - q01), rel=1e-15)
    assert learner.rows.clock[0, 1] == 2


def test_one_call_of_many_steps_is_many_calls_of_one() -> None:
    together, apart = corridor_learner(epsilon=0.5), corridor_learner(epsilon=0.5)
    together.learn(40)
    for _ in range(40):
        apart.learn()
    assert together.rows.raw.tobytes() == apart.rows.raw.tobytes()
    assert together.lanes.pack().tobytes() == apart.lanes.pack().tobytes()
    assert together.totals == pytest.approx(apart.totals, rel=1e-14)


def test_the_time_limit_truncates_and_bootstraps() -> None:
    learner = corridor_learner(limit=2)
    learner.learn(2)
    # The second step is cut off: still 2 + .8 * 8, not 2; and the lane is back at the start.
    assert learner.rows.values[1, 1] == 6.0 + 0.5 * (2 + 0.8 * 8.0 - 6.0)
    assert learner.totals[[loop.RETURN_SUM, loop.EPISODES]].tolist() == [3.0, 1.0]
    assert learner.lanes.pack()[0].tolist() == (0, 1, 1, 1.0, False, 0, 0.0)
    assert learner.rows.values[2, 1] == 8.0


def test_an_end_at_the_time_limit_is_one_episode_without_bootstrap() -> None:
    learner = corridor_learner(limit=3)
    learner.learn(3)
    assert learner.rows.values[2, 1] == 9.0
    assert learner.totals[[loop.RETURN_SUM, loop.EPISODES]].tolist() == [13.0, 1.0]


def test_rescaled_step_sees_the_clock_after_its_increment() -> None:
    learner = corridor_learner(step_size="rescaled_linear")
    learner.learn()
    assert learner.rows.values[0, 1] == pytest.approx(4.0 + 1 / 1.2 * 1.8, rel=1e-15)


def test_sarsa_bootstraps_from_the_action_it_takes_next() -> None:
    """With epsilon 1 the next action is read off the lane after the step, greedy or not."""
    greedy = other = 0
    learner = corridor_learner("sarsa", epsilon=1.0)
    for _ in range(60):
        (s, a, following, reward, ended, _, _) = learner.lanes.pack()[0].tolist()
        before = learner.rows.values.copy()
        learner.learn()
        next_action = int(learner.lane("action")[0])
        if ended:
            expected = before[s, a] + 0.5 * (reward - before[s, a])
        else:
            assert learner.lane("state")[0] == following
            future = before[following, next_action]
            expected = before[s, a] + 0.5 * (reward + 0.8 * future - before[s, a])
            greedy += future == before[following].max()
            other += future != before[following].max()
        assert learner.rows.values[s, a] == pytest.approx(expected, rel=1e-14)
        changed = learner.rows.values != before
        changed[s, a] = False
        assert not changed.any()
    assert greedy >= 5 and other >= 5


def test_the_next_action_is_chosen_before_the_update() -> None:
    """A self-loop whose update dethrones the greedy action: the old table still decides."""
    model = explicit_model("loop", 1, 2, [0, 1, 2], [0, 0], [1.0, 1.0], [-9.0, 0.0])
    settings = config(step_size="constant", alpha=0.5, discount=0.5).learn
    learner = Learner(model, settings, 1, epsilon=0.0)
    learner.rows.values[...] = [[1.0, 0.0]]
    learner.begin()
    learner.learn()
    assert learner.rows.values.tolist() == [[1.0 + 0.5 * (-9.0 + 0.5 - 1.0), 0.0]]
    assert learner.lane("action")[0] == 0
    learner.learn()
    assert learner.lane("action")[0] == 1


def test_lanes_of_an_agent_use_their_global_numbers() -> None:
    """Two agents with lanes 0-4 and 5-9 start as one agent with lanes 0-9 does."""
    model, learn = random_model(12, 3), config().learn
    whole = Learner(model, learn, 10)
    parts = [Learner(model, learn, 5, first=0), Learner(model, learn, 5, first=5)]
    for learner in (whole, *parts):
        learner.begin()
    packed = np.concatenate([part.lanes.pack() for part in parts])
    assert whole.lanes.pack().tobytes() == packed.tobytes()
    assert len({record.tobytes() for record in packed}) > 5


@pytest.mark.parametrize("n_lanes", [1, 16, 64, 70, 128])
def test_every_draw_is_the_documented_one(n_lanes: int) -> None:
    """The loop, written again over dictionaries of single lanes, from the table of draws."""
    model, seed, epsilon = random_model(9, 3, limit=6), 77, 1 << 30
    learner = Learner(model, config(discount=0.7).learn, n_lanes, 40, 0.25, seed)
    learner.begin()
    learner.learn(13)
    learner.learn(17)
    q, clock, totals = np.zeros((9, 3)), np.zeros((9, 3), int), np.zeros(3)
    choose, best = epsilon_greedy(3), best_of(3)

    def draw(step: int, lane: int, purpose: np.uint64) -> tuple[Any, Any]:
        return threefry(u8(step), u8(40 + lane), u8(seed), purpose)

    def act(state: int, word: Any) -> int:
        return int(choose(q[state], u8(0), best(q[state], u8(0))[1], word, u8(epsilon)))

    def move(state: int, action: int, bits: Any) -> tuple[int, float, bool]:
        following, reward, ended = model.law_step(u8(state), u8(action), bits, model.params)
        return int(following), float(reward), bool(ended)

    lanes: list[dict[str, Any]] = []
    with np.errstate(over="ignore"):
        for lane in range(n_lanes):
            word, bits = draw(0, lane, TRANSITION)
            state = int(model.law_start(draw(0, lane, RESET)[0], model.params))
            action = act(state, word)
            lanes.append({"at": (state, action), "seen": move(state, action, bits), "length": 0})
        for step in range(1, 31):
            for number, lane in enumerate(lanes):
                word, bits = draw(step, number, TRANSITION)
                following, reward, ended = lane["seen"]
                state, action = following, act(following, word)
                clock[lane["at"]] += 1
                target = reward + (0.0 if ended else 0.7 * q[following].max())
                error = target - q[lane["at"]]
                q[lane["at"]] += error / (1 + (1 - 0.7) * clock[lane["at"]])
                lane["length"] += 1
                lane["return"] = lane.get("return", 0.0) + reward
                totals[loop.SQUARE_SUM] += error**2
                if ended or lane["length"] >= 6:
                    totals[loop.EPISODES] += 1
                    totals[loop.RETURN_SUM] += lane.pop("return")
                    lane["length"] = 0
                    state = int(model.law_start(draw(step, number, RESET)[0], model.params))
                    action = act(state, word)
                lane.update(at=(state, action), seen=move(state, action, bits))
    assert np.array_equal(learner.rows.clock, clock)
    np.testing.assert_allclose(learner.rows.values, q, rtol=1e-12, atol=1e-13)
    assert learner.totals == pytest.approx(totals, rel=1e-12)
    assert learner.totals[loop.EPISODES] >= 5 * n_lanes
    assert learner.lane("state").tolist() == [lane["at"][0] for lane in lanes]
    assert learner.lane("age").tolist() == [lane["length"] for lane in lanes]


def test_not_a_number_reaches_the_totals() -> None:
    learner = corridor_learner()
    learner.rows.values[0, 1] = np.nan
    learner.learn()
    assert np.isnan(learner.totals[loop.SQUARE_SUM])


# Each rule and each step size with each type, exploration and start somewhere.
COMBINATIONS = [
    dict(rule="q_learning", step_size="rescaled_linear", dtype="float64"),
    dict(rule="sarsa", step_size="constant", dtype="float32"),
    dict(rule="expected_sarsa", step_size="polynomial", dtype="float64", exploration="softmax"),
    dict(rule="double_q", step_size="sign_change", dtype="float32", exploring_starts=True),
    dict(rule="q_learning", step_size="linear", dtype="float32", exploration="softmax"),
    dict(rule="sarsa", step_size="sign_change", dtype="float64"),
    dict(rule="expected_sarsa", step_size="rescaled_linear", dtype="float32"),
    dict(rule="double_q", step_size="constant", dtype="float64", exploration="softmax"),
]
LANE_COUNTS = (1, 7, 15, 17, 63, 65, 79, 100, 129)
CASES = [(4, 65, combination) for combination in COMBINATIONS] + [
    (n_actions, LANE_COUNTS[n_actions - 1], COMBINATIONS[(3 * n_actions) % 8])
    for n_actions in range(1, 10)
]


@pytest.mark.parametrize(("n_actions", "n_lanes", "combination"), CASES)
def test_plain_python_and_compiled_code_agree_bit_for_bit(
    n_actions: int, n_lanes: int, combination: dict[str, Any]
) -> None:
    model = random_model(11, n_actions, seed=n_actions)
    learn = config(**combination).learn
    if learn.exploring_starts:
        model = exploring_starts(model)
    pair = [
        Learner(model, learn, n_lanes, 1 << 40, 0.3, 2**64 - 5, use_compiled)
        for use_compiled in (False, True)
    ]
    for learner in pair:
        shape = learner.rows.values.shape
        learner.rows.values[...] = np.linspace(-1, 1, 11 * shape[1]).reshape(shape)
        learner.begin()
    assert pair[0].state() == pair[1].state()
    for n_steps in (3, 1, 4):
        for learner in pair:
            learner.learn(n_steps)
        assert pair[0].state() == pair[1].state()
    assert pair[0].visits.sum() == 8 * n_lanes
    assert pair[0].totals[loop.EPISODES] > 0 or n_lanes < 2
