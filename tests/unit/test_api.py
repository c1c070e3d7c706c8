"""`QLearning` without MPI: one rank, and ranks that are threads of this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.wrappers import TimeLimit, TransformReward

from distq_mpi import QLearning, environments, evaluate_policy, evaluation
from distq_mpi.callbacks import BaseCallback
from distq_mpi.config import from_dict, to_toml
from distq_mpi.errors import ConfigError, DistqError, DivergedError, FileError, ModelError
from tests.contract.chain import Chain
from tests.stand_in import Alone, Thread, one_state, together

SMALL = {"agents": 2, "lanes": 8, "steps_per_round": 4, "seed": 3}


class Solo(Alone):
    """What `Transport` offers besides the phases of a round, on one rank."""

    node_rank, node_size = 0, 1
    library = "none"

    @property
    def hosts(self) -> list[str]:
        return ["here"] * self.size

    def share_on_node(self, arrays: Any) -> Any:
        return self.broadcast(arrays)

    @contextlib.contextmanager
    def same_outcome(self) -> Iterator[None]:
        mine: list[DistqError] = []
        try:
            yield
        except DistqError as error:
            mine.append(error)
        found = [error for errors in self._everybody(mine) for error in errors]
        if found:
            found[0].agreed = True
            raise found[0]

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        yield

    def from_rank_0(self, work: Any) -> Any:
        return self.broadcast(work() if self.rank == 0 else None)

    def close(self) -> None:
        """Nothing to free."""

    def _everybody(self, mine: Any) -> list[Any]:
        return [mine]


class Several(Solo, Thread):
    """The same, on ranks that are threads."""

    leads_node = True
    broadcast, broadcast_on_node = Thread.broadcast, Thread.broadcast

    def _everybody(self, mine: Any) -> list[Any]:
        return self._exchange(mine)


@pytest.fixture(autouse=True)
def without_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transports come from here: a `comm` that is given is one already."""

    def transport(comm: Any) -> Any:
        return Several(comm.rank, comm.size, comm._board, comm._hosts)

    transport.connect = Solo  # type: ignore[attr-defined]
    module = types.SimpleNamespace(Transport=transport)
    monkeypatch.setitem(sys.modules, "distq_mpi.transport", module)


class Stop(BaseCallback):
    """Ends learning at a round; keeps what it saw."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def _on_step(self) -> bool:
        return self.n_calls < self.at


def test_asking_for_the_class_starts_no_mpi() -> None:
    code = (
        "import sys, distq_mpi; from distq_mpi import QLearning, evaluate_policy; "
        "assert {'QLearning', 'evaluate_policy'} <= set(dir(distq_mpi)); "
        "print([m for m in ('mpi4py', 'numba', 'gymnasium', 'rich', 'pydantic', 'h5py') "
        "if m in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
        cwd=Path(environments.__file__).parents[2],
    ).stdout  # fmt: skip
    assert found.strip() == "[]"
    with pytest.raises(ImportError, match="SARSA"):
        from distq_mpi import SARSA  # type: ignore[attr-defined]  # noqa: F401


# Configuration


def test_keywords_are_configuration_keys() -> None:
    model = QLearning(
        Chain, gamma=0.9, fusion="mean", env_kwargs={"length": 4}, evaluate_episodes=7,
        stop_episodes=10**6, **{**SMALL, "seed": np.int64(5)},
    )  # fmt: skip
    config = model.config
    assert (config.learn.discount, config.parallel.fusion, config.evaluate.episodes) == (
        0.9, "mean", 7,
    )  # fmt: skip
    assert (model.seed, model.n_envs, model.environment.n_states) == (5, 8, 4)
    assert config.env.id == "tests.contract.chain:Chain"
    assert config.learn.step_size == "rescaled_linear"


def test_a_learning_rate_is_that_of_a_constant_step_size() -> None:
    model = QLearning(Chain, learning_rate=0.25, **SMALL)
    assert (model.config.learn.step_size, model.config.learn.alpha) == ("constant", 0.25)
    both = QLearning(Chain, learning_rate=0.25, step_size="rescaled_linear", **SMALL)
    assert both.config.learn.step_size == "rescaled_linear"


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        QLearning(Chain, discout=0.9, alpha=3, episodes=5, gamma=0.9, discount=0.8, fusion="pool")
    told = str(caught.value).splitlines()
    assert "discout: unknown keyword; did you mean discount?" in told
    assert "episodes: unknown keyword; did you mean stop_episodes?" in told
    assert "discount: gamma says the same already" in told
    assert any(line.startswith("alpha: 3 must be") for line in told)
    assert any(line.startswith("fusion:") and "pooled" in line for line in told)
    assert len(told) == 5


def test_configurations_from_all_sources_agree(tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "env": {"id": "tests.contract.chain:Chain", "kwargs": {"length": 5}},
        "parallel": {"agents": 2, "lanes": 8},
    }
    file = tmp_path / "config.toml"
    file.write_text(to_toml(from_dict(sections)))
    for source in (sections, from_dict(sections), str(file), file):
        model = QLearning(config=source, discount=0.5)
        assert (model.environment.n_states, model.n_envs) == (5, 8)
        assert model.config.learn.discount == 0.5
    with pytest.raises(ConfigError, match="cannot be read"):
        QLearning(config=tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="unknown section"):
        QLearning(config={"learnn": {}})


# Environments


def test_environments_from_objects_are_those_of_their_names() -> None:
    named = QLearning("tests.contract.chain:Chain", **SMALL).learn(800).table_sha256()
    class Inner(Chain):
        pass

    for env in (Chain, Chain(), Inner, QLearning(Chain).environment):
        model = QLearning(env, **SMALL)
        assert model.learn(800).table_sha256() == named
    lake = QLearning("FrozenLake-v1", env_kwargs={"is_slippery": False}, **SMALL)
    made = QLearning(gymnasium.make("FrozenLake-v1", is_slippery=False), **SMALL)
    assert made.environment.model_id == lake.environment.model_id
    assert made.config.env.id == "FrozenLake-v1"


def test_the_time_limit_is_that_of_the_object() -> None:
    bare = FrozenLakeEnv()
    for env, limit in (
        (bare, 0),
        (TimeLimit(bare, 7), 7),
        (TimeLimit(TimeLimit(bare, 7), 9), 7),
        (gymnasium.make("FrozenLake-v1").unwrapped, 0),
        (gymnasium.make("FrozenLake-v1"), 100),
    ):
        assert QLearning(env, **SMALL).environment.max_episode_steps == limit


def test_what_cannot_be_learned_on_is_refused() -> None:
    with pytest.raises(ModelError, match="no environment"):
        QLearning(3)
    with pytest.raises(ModelError, match="takes no arguments"):
        QLearning(Chain(), env_kwargs={"length": 3})
    with pytest.raises(ModelError, match="Taxi-v4"):
        QLearning("Taxi-v3")


def test_what_a_wrapper_may_change_is_stepped() -> None:
    plain = gymnasium.make("FrozenLake-v1", is_slippery=False)
    changed = TransformReward(plain, lambda reward: reward - 1)
    model = QLearning(changed, **SMALL, discount=0.9)
    assert model.environment.kind == "stepped" and model.certificate() is None
    model.learn(2000)
    assert model.q_values.min() < -1  # the table below the wrapper knows no costs


def test_observations_are_those_of_the_environment_before_it_was_cut() -> None:
    model = QLearning("CartPole-v1", bins=[1, 1, 6, 2], clip=3.0, **SMALL)
    assert model.environment.n_states == 12
    model.learn(500)
    env = gymnasium.make("CartPole-v1")
    seen = env.reset(seed=1)[0]
    action, _ = model.predict(seen)
    assert env.action_space.contains(action)
    many, _ = model.predict(np.stack([seen, -seen, seen]))
    assert many.shape == (3,) and many[0] == many[2] == action
    assert evaluate_policy(model, env, 2)[0] >= 8
    blackjack = QLearning("Blackjack-v1", **SMALL)
    assert blackjack.predict((20, 5, 0))[0] in (0, 1)
    with pytest.raises(ModelError, match="observation"):
        blackjack.predict((40, 5, 0))


# Learning


def test_it_learns_the_exact_values_of_a_line() -> None:
    """Every step costs 1: Q(s, right) = -(1 - g^d) / (1 - g), d steps from the end."""
    g, length = 0.9, 5
    law = Chain(length=length, slip=0.0)
    model = QLearning(law, learning_rate=1.0, discount=g, initial="zeros", lanes=8, agents=1)
    model.learn(20_000)
    distance = length - 1 - np.arange(length - 1)
    right = -(1 - g**distance) / (1 - g)
    left = -1 + g * right[[0, 0, 1, 2]]
    np.testing.assert_allclose(model.q_values[:-1], np.stack([left, right], axis=1), rtol=1e-12)
    certificate = model.certificate()
    assert certificate is not None and certificate.policy_gap == pytest.approx(0, abs=1e-9)
    assert certificate.policy_return == pytest.approx(-(length - 1))
    assert evaluate_policy(model, law, 3) == (-4.0, 0.0)


def test_steps_add_up_and_are_rounded_to_all_lanes() -> None:
    model = QLearning(Chain, **SMALL)
    assert model.learn(100) is model
    assert model.num_timesteps == model.progress.steps == 104
    assert model.stop_reason == "steps 104 >= 100"
    assert model.learn(1e2).num_timesteps == 208


def test_two_learns_give_the_bits_of_one_where_no_round_was_shortened() -> None:
    """Rounds of 4 steps of 8 lanes: 96 steps are three whole rounds."""
    twice = QLearning(Chain, **SMALL).learn(96).learn(96)
    once = QLearning(Chain, **SMALL).learn(192)
    assert twice.table_sha256() == once.table_sha256()
    assert twice.progress == once.progress


def test_it_ends_by_the_rules_of_the_configuration() -> None:
    model = QLearning(Chain, rounds=5, **SMALL).learn(10**6)
    assert model.progress.round == 5 and "rounds 5" in model.stop_reason
    assert model.learn(10**6).progress.round == 5
    default = QLearning(Chain, **SMALL).learn(None)
    assert "policy_gap" in default.stop_reason
    certificate = default.certificate()
    assert certificate is not None and (certificate.policy_gap or 0) <= 1e-3


def test_bad_numbers_of_steps_are_refused() -> None:
    model = QLearning(Chain, **SMALL)
    wrong: Any
    for wrong in (0, -5, 1.5, float("nan"), float("inf"), True, "many"):
        with pytest.raises(ConfigError, match="total_timesteps"):
            model.learn(wrong)
    with pytest.raises(ConfigError, match="never counted anew"):
        model.learn(8, reset_num_timesteps=True)
    assert model.num_timesteps == 0


def test_exact_values_change_no_bit() -> None:
    asked = QLearning(Chain, **SMALL)
    asked.learn(320, callback=lambda locals_, globals_: locals_["self"].certificate() is not None)
    plain = QLearning(Chain, evaluate_exact=False, **SMALL).learn(320)
    assert asked.table_sha256() == plain.table_sha256()
    assert plain.certificate() is None


def test_numbers_that_are_not_finite_end_learning_before_them() -> None:
    law = types.SimpleNamespace(
        n_states=1, n_actions=1, n_outcomes=1, params=(1e308,),
        outcome=lambda state, action, i, params: (1.0, 0, params[0], False),
        start=lambda i, params: (1.0, 0),
    )  # fmt: skip
    model = QLearning(law, learning_rate=1.0, initial="zeros", lanes=1, agents=1,
                      steps_per_round=1)  # fmt: skip
    with pytest.raises(DivergedError, match="not finite"):
        model.learn(100)
    assert np.isfinite(model.q_values).all() and model.num_timesteps < 100


# Interruptions


def test_a_callback_ends_learning_at_its_round() -> None:
    model = QLearning(Chain, **SMALL)
    callback = Stop(3)
    model.learn(10**6, callback)
    assert (model.progress.round, callback.n_calls, callback.num_timesteps) == (3, 3, 96)
    assert model.stop_reason == "a callback asked to stop"
    assert callback.locals["round"] == 3 and callback.locals["self"] is model
    assert model.table_sha256() == QLearning(Chain, **SMALL).learn(96).table_sha256()


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_stop_together_and_have_the_same_bits(size: int) -> None:
    """Only the last rank has a callback, and it alone wants to stop."""

    def work(transport: Any) -> tuple[int, str, str]:
        model = QLearning(Chain, comm=transport, **SMALL)
        model.learn(10**6, Stop(3) if transport.rank == size - 1 else None)
        return model.progress.round, model.table_sha256(), model.stop_reason

    alone = QLearning(Chain, **SMALL).learn(96).table_sha256()
    assert together(size, work) == [(3, alone, "a callback asked to stop")] * size


def test_an_interrupt_leaves_the_last_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = QLearning(Chain, **SMALL).learn(320)
    cut = QLearning(Chain, **SMALL)
    architecture = cut._run.architecture
    committed: list[Any] = []

    def note(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        committed[:] = [cut.progress, cut.table_sha256()]

    for phase in ("learn", "exchange"):
        original, calls = getattr(architecture, phase), []

        def interrupted(*args: Any, original: Any = original, calls: Any = calls) -> Any:
            found = original(*args)
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(architecture, phase, interrupted)
        with pytest.raises(KeyboardInterrupt):
            cut.learn(320 - cut.num_timesteps, note)
        monkeypatch.setattr(architecture, phase, original)
        assert committed == [cut.progress, cut.table_sha256()]
    assert 1 < cut.progress.round < 10
    cut.learn(320 - cut.num_timesteps)
    assert cut.table_sha256() == whole.table_sha256()
    assert cut.progress == whole.progress


def test_an_interrupt_does_not_cut_a_commit_in_two(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = QLearning(Chain, **SMALL).learn(192)
    cut = QLearning(Chain, **SMALL)
    original = cut._run.architecture.commit

    def commit() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        original()

    monkeypatch.setattr(cut._run.architecture, "commit", commit)
    with pytest.raises(KeyboardInterrupt):
        cut.learn(192)
    assert cut.progress.round == 1
    monkeypatch.setattr(cut._run.architecture, "commit", original)
    assert cut.learn(192 - 32).table_sha256() == whole.table_sha256()


def test_handlers_are_touched_only_when_asked() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    seen: list[Any] = []

    def look(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        seen.append([signal.getsignal(number) for number in numbers])

    model = QLearning(Chain, **SMALL)
    model.learn(64, look)
    assert all(found == before for found in seen)

    def ask(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        if locals_["round"] == 4:
            os.kill(os.getpid(), signal.SIGUSR2)

    model.learn(10**6, ask, signals=True)
    assert model.stop_reason == "asked to stop" and model.progress.round == 5
    assert [signal.getsignal(number) for number in numbers] == before


# Acting


def test_predict_takes_what_a_vectorised_environment_gives() -> None:
    model = QLearning(Chain, **SMALL)
    base = model._run.architecture.base
    base.values[:] = [[1, 2]] * 3 + [[2, 1]] * 3 + [[1, 1]]  # ties go to the lowest
    for observation in (0, np.int64(0), np.array(0)):
        action, state = model.predict(observation)
        assert action == 1 and np.shape(action) == () and isinstance(action, np.int64)
        assert state is None
    actions, _ = model.predict(
        np.array([0, 3, 6], np.int32), state=None, episode_start=np.ones(3, bool),
        deterministic=True,
    )  # fmt: skip
    assert actions.tolist() == [1, 0, 0] and actions.dtype == np.int64
    assert model.predict([[0], [5]])[0].shape == (2, 1)
    assert model.predict(np.zeros(0, int))[0].shape == (0,)
    wrong: Any
    for wrong in (7, -1, [0, 7], 0.0, "left", {"a": 1}, True):
        with pytest.raises(ModelError, match="from 0 to 6"):
            model.predict(wrong)


def test_q_values_are_a_copy() -> None:
    model = QLearning(Chain, **SMALL)
    before = model.table_sha256()
    values = model.q_values
    values[:] = 99
    assert values.shape == (7, 2) and model.table_sha256() == before


@pytest.mark.parametrize("rule", ["q_learning", "double_q"])
def test_behaviour_explores_as_the_configuration_says(rule: str) -> None:
    """Share of each action in 40,000 draws, within five standard errors."""
    n = 40_000
    values = np.array([1.0, 2.0])
    parts = 2 if rule == "double_q" else 1
    weights = np.exp(values / 1.5)
    expected = {
        "epsilon_greedy": np.array([0.2, 0.8]),
        "softmax": weights / weights.sum(),
    }
    for exploration, shares in expected.items():
        model = QLearning(
            Chain, rule=rule, exploration=exploration, epsilon=0.4, temperature=1.5, **SMALL
        )
        model._run.architecture.base.values[:] = np.tile(values, parts)
        actions, _ = model.predict(np.zeros(n, int), deterministic=False)
        error = 5 * (shares[0] * shares[1] / n) ** 0.5
        assert np.mean(actions == 0) == pytest.approx(shares[0], abs=error), exploration
    tied = QLearning(Chain, rule=rule, epsilon=0.0, **SMALL)
    tied._run.architecture.base.values[:] = 1.0
    actions, _ = tied.predict(np.zeros(n, int), deterministic=False)
    assert np.mean(actions) == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)


# Files


def test_a_loaded_model_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    whole = QLearning(Chain, **SMALL).learn(192)
    half = QLearning(Chain, **SMALL).learn(96)
    path = half.save(tmp_path / "deep" / "model")
    assert path == tmp_path / "deep" / "model.h5"
    for found in (path, str(path), tmp_path / "deep" / "model"):
        loaded = QLearning.load(found)
        assert loaded.table_sha256() == half.table_sha256()
        assert (loaded.num_timesteps, loaded.config.parallel.agents) == (96, 2)
        loaded.learn(96)
        assert loaded.table_sha256() == whole.table_sha256()
        assert loaded.progress == whole.progress

    def work(transport: Any) -> str:
        return QLearning.load(path, comm=transport).learn(96).table_sha256()

    assert together(3, work) == [whole.table_sha256()] * 3


def test_a_model_of_an_object_is_loaded_with_it(tmp_path: Path) -> None:
    law = Chain(length=4)
    path = QLearning(law, **SMALL).learn(96).save(tmp_path / "model")
    assert QLearning.load(path, env=law).num_timesteps == 96
    with pytest.raises(FileError, match="another environment"):
        QLearning.load(path)
    with pytest.raises(FileError, match="another environment"):
        QLearning.load(path, env=Chain(length=5))


def test_a_loaded_model_keeps_what_decides_its_bits(tmp_path: Path) -> None:
    path = QLearning(Chain, rounds=2, **SMALL).learn(None).save(tmp_path / "model")
    for keywords in ({"discount": 0.5}, {"agents": 1}, {"seed": 4}):
        with pytest.raises(ConfigError, match="would change the bits"):
            QLearning.load(path, **keywords)
    assert QLearning.load(path).learn(96).progress.round == 5
    assert QLearning.load(path, rounds=3).learn(96).progress.round == 3
    with pytest.raises(FileError, match="none"):
        QLearning.load(tmp_path / "none")


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        QLearning(Chain, **SMALL).save(tmp_path / "file" / "model")


def test_a_run_directory_only_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    QLearning(Chain, **SMALL).learn(96)
    assert list(tmp_path.iterdir()) == []
    model = QLearning(Chain, run_dir="run", **SMALL).learn(96)
    run = tmp_path / "run"
    assert {"config.toml", "summary.json", "metrics.jsonl", "result.h5"} <= {
        path.name for path in run.iterdir()
    }
    model.learn(96)
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [
        "round-000000000003.h5", "round-000000000006.h5",
    ]  # fmt: skip
    assert QLearning.load(run / "result.h5").table_sha256() == model.table_sha256()
    assert capsys.readouterr().out == ""


def test_a_closed_model_still_acts(tmp_path: Path) -> None:
    with QLearning(Chain, **SMALL) as model:
        model.learn(96)
    assert model.predict(0)[1] is None and model.q_values.shape == (7, 2)
    for method in (lambda: model.learn(1), lambda: model.save(tmp_path / "x"), model.certificate):
        with pytest.raises(ConfigError, match="closed"):
            method()


def test_a_progress_bar_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    QLearning(Chain, **SMALL).learn(96, progress_bar=True)
    assert "96/96" in capsys.readouterr().out


# Evaluation


def test_evaluation_returns_what_stable_baselines3_does() -> None:
    model = QLearning(Chain(slip=0.0), initial="zeros", **SMALL)
    model._run.architecture.base.values[:] = [0, 1]  # always right
    assert evaluate_policy(model, Chain(slip=0.0)) == (-6.0, 0.0)
    assert evaluate_policy(model, model.environment, 2, return_episode_rewards=True) == (
        [-6.0, -6.0], [6, 6],
    )  # fmt: skip
    seen: list[int] = []
    evaluate_policy(
        model, Chain(slip=0.0), 1, callback=lambda found, _: seen.append(found["observation"])
    )
    assert seen == [1, 2, 3, 4, 5, 6]
    evaluate_policy(model, Chain(slip=0.0), 1, reward_threshold=-6.5)
    with pytest.raises(AssertionError, match="-6"):
        evaluate_policy(model, Chain(slip=0.0), 1, reward_threshold=-6.0)
    with pytest.raises(ConfigError, match="n_eval_episodes"):
        evaluate_policy(model, Chain, 0)
    with pytest.raises(ConfigError, match="several"):
        evaluate_policy(model, gymnasium.make_vec("FrozenLake-v1", num_envs=2))


def test_simulation_in_python_has_the_law_of_the_environment() -> None:
    """Six steps to the right, each taking 1 / (1 - slip) tries: mean and deviation are known."""
    model = QLearning(Chain(slip=0.3), **SMALL)
    model._run.architecture.base.values[:] = [0, 1]
    returns, lengths = evaluate_policy(
        model, "tests.contract.chain:Chain", 2000, return_episode_rewards=True
    )
    variance = 6 * 0.1 / 0.9**2
    assert np.mean(returns) == pytest.approx(-6 / 0.9, abs=5 * (variance / 2000) ** 0.5)
    assert np.var(lengths) == pytest.approx(variance, rel=0.2)


def test_an_endless_episode_is_cut_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "LONGEST", 50)
    model = QLearning(one_state(), **SMALL)
    with pytest.warns(UserWarning, match="2 of 2 episodes were cut after 50 steps"):
        found = evaluate_policy(model, one_state(), 2, return_episode_rewards=True)
    assert found == ([50.0, 50.0], [50, 50])
    limited = one_state(max_episode_steps=7)
    assert evaluate_policy(model, limited, 1, return_episode_rewards=True) == ([7.0], [7])
