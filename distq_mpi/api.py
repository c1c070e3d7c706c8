"""`QLearning`: learn from Python with the verbs of stable-baselines3.

On one rank in a notebook or a script, or under `mpirun`, where every rank runs the same script and
calls what is COLLECTIVE together with all others.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tomllib
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi import checkpoint, environments
from distq_mpi.callbacks import as_callback
from distq_mpi.config import Config, StopConfig
from distq_mpi.errors import ConfigError, DistqError, DivergedError, ModelError
from distq_mpi.files import make_folder
from distq_mpi.monitor.console import progress_bar
from distq_mpi.preparation import Settled, from_checkpoint, from_config, prepare, watch
from distq_mpi.signals import Signals
from distq_mpi.stopping import Verdict
from distq_mpi.summary import finish

if TYPE_CHECKING:
    from distq_mpi.architectures import Progress
    from distq_mpi.certificate import Certificate
    from distq_mpi.environments.base import Environment

SUFFIX = ".h5"


class QLearning:
    """A Q-table, and all that learns it. Making one is COLLECTIVE.

    Parameters
    ----------
    env : a Gymnasium id, `garnet`, `grid`, a model file, `module:Law`; an `Environment`; a law or
        an environment of Gymnasium, or the class of one. An object is looked at, never stepped:
        copies of it are. None: the configuration's `env.id`.
    comm : an mpi4py communicator, duplicated; None: all ranks that `mpirun` started, or this
        process alone.
    config : `Config`, a mapping of its sections, or the path of a TOML file; keywords win over it.
    keywords : configuration keys by their last word (`discount`, `fusion`, `agents`, `seed`) or
        with their section (`evaluate_episodes`, `run_dir`); `env_kwargs` is a mapping; `gamma` is
        `discount`, `learning_rate` is `alpha` of a constant step size. With `run_dir`, the
        directory of the command line is kept; without it nothing is written.

    Attributes
    ----------
    config : resolved `Config`. environment : `Environment`. rank, size : of this process, and
    how many there are. n_envs : lanes, on all ranks together. stop_reason : why the last `learn`
    ended, in words.

    Raises
    ------
    DistqError
        On all ranks alike: `ConfigError` with all mistakes of configuration and keywords,
        `ModelError` where the environment cannot be learned on.
    """

    def __init__(
        self,
        env: Any = None,
        comm: Any = None,
        *,
        config: Config | Mapping[str, Any] | str | os.PathLike[str] = "",
        **keywords: Any,
    ) -> None:
        given, named = _divided(env)

        def find(size: int, per_host: int) -> Settled:
            wanted = _configuration(keywords, config, given, named)
            self._own_stop = wanted.stop
            return from_config(wanted, bool(wanted.run.dir), given, size, per_host)

        self._begin(comm, given, find)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], env: Any = None, comm: Any = None, **keywords: Any
    ) -> QLearning:
        """Return the model of a checkpoint, ready to go on with the same bits; COLLECTIVE.

        Parameters
        ----------
        path : what `save` or a run on the command line wrote; `.h5` is added where it lacks an end.
        env : needed where the model was made from an object; must be the same process.
        comm : as for the constructor; the number of ranks may be another one.
        keywords : keys that leave the bits as they are (`policy_gap`, `run_dir`, `memory_bytes`).
            Stop rules and the run directory are not taken from the file.

        Raises
        ------
        DistqError
            On all ranks alike: `FileError` where the file cannot be trusted or belongs to another
            environment, `ConfigError` for keywords that would change the bits.
        """
        model = cls.__new__(cls)
        given, named = _divided(env)
        file = _with_suffix(path)

        def find(size: int, per_host: int) -> Settled:
            stored = tomllib.loads(checkpoint.read_header(file).config_toml)
            stored["stop"] = {}
            for key in ("dir", "overwrite"):
                stored["run"].pop(key, None)
            wanted = _configuration(keywords, stored, given, named)
            model._own_stop = wanted.stop
            return from_checkpoint(file, wanted, given, size, per_host)

        model._begin(comm, given, find)
        return model

    def _begin(self, comm: Any, given: Any, find: Callable[[int, int], Settled]) -> None:
        from distq_mpi.trainer import Run
        from distq_mpi.transport import Transport

        transport = Transport.connect() if comm is None else Transport(comm)
        self._transport, self._closed, self.stop_reason = transport, False, ""
        self._run: Any = None
        if transport.size == 1:
            # Alone it is local: a notebook that makes many models runs out of no communicators.
            weakref.finalize(self, transport.close).atexit = False
        self._own_stop, self._signals = StopConfig(), Signals()
        with transport.together():
            try:
                prepared = prepare(find, transport, given)
                self._own_stop = transport.broadcast(self._own_stop)
                self._run = Run(prepared, transport, self._signals)
                self._run.restore()
            except DistqError as error:
                if error.agreed:
                    self.close()
                raise
        self._random = np.random.default_rng(self.seed)

    def learn(
        self,
        total_timesteps: float | None,
        callback: Any = None,
        progress_bar: bool = False,
        *,
        reset_num_timesteps: bool = False,
        signals: bool = False,
    ) -> QLearning:
        """Learn so many steps more, and return the model; COLLECTIVE.

        It ends earlier where a stop rule of the configuration holds (`policy_gap=1e-3`) or a
        callback asks for it. The last round is shortened to end on the step, rounded up to a whole
        step of all lanes. Under the same configuration, the bits are those of the command line
        with `stop.steps`; a second `learn` is its `resume`.

        Parameters
        ----------
        total_timesteps : steps of all lanes together, on all ranks; rank 0's number counts. None:
            until a stop rule of the configuration holds.
        callback : a callback (see `distq_mpi.callbacks`), several in a list, or a function; called
            at the end of every round, on every rank. One rank that says False ends it on all.
        progress_bar : show one on the terminal of rank 0.
        reset_num_timesteps : must be False; every random number is a function of the step's number.
        signals : let INT, TERM and USR2 end learning after the round, on all ranks. By default no
            handler is touched, but for the instant of a commit: alone, an interrupt raises
            KeyboardInterrupt, and the model stays as the last round left it (a table that is
            changed in place, see below, keeps what it learned since); on several ranks it ends the
            job.

        Raises
        ------
        DivergedError
            If numbers stop being finite; the model stays as it was before that round, unless its
            table is changed in place (`sharded`, `server` out of step, `hogwild`, one agent's of
            32 MB and more on one rank).
        DistqError
            On all ranks alike, whatever else goes wrong.
        """
        with self._transport.together():
            self._open()
            total, anew = self._transport.broadcast((total_timesteps, reset_num_timesteps))
            if anew:
                raise _agreed(ConfigError("reset_num_timesteps: steps are never counted anew"))
            stop = self._stop_after(total)
            called = self._any(callback is not None)
            handlers = self._signals if signals else contextlib.nullcontext()
            self._run.monitor = watch(self._run.prepared, self._transport, quiet=True)
            try:
                ended = self._run.go_on(stop)
                with handlers:
                    with self._progress_bar(stop, progress_bar) as show:
                        ended = self._rounds(ended, as_callback(callback), called, total, show)
                    if self._run.prepared.kept:
                        finish(self._run, ended)
            except BaseException as error:
                self._run.architecture.rollback()
                if self._run.monitor is not None:
                    code = getattr(error, "exit_code", 1)
                    self._run.monitor.fail(f"{type(error).__name__}: {error}", code)
                raise
            finally:
                self._run.monitor = None
            self.stop_reason = ended.reason
            if ended.status == "diverged":
                raise _agreed(DivergedError(ended.reason))
        return self

    def predict(
        self,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = True,
    ) -> tuple[Any, None]:
        """Return (actions, None) for one observation or an array of them. Local, but COLLECTIVE
        with `architecture="sharded"`, where every rank may ask for states of its own.

        observation : states 0 to S - 1, an integer or an array of any shape; the actions have that
            shape, int64. Where the environment is stepped in Python: an observation of its own
            space (before it was cut into bins), or several along a first axis; the actions are
            elements of its action space.
        state, episode_start : of policies with a memory; not looked at.
        deterministic : greedy, the lowest of equal actions; else as while learning, with the
            exploration of the next round and random numbers of this process's own.

        Raises ModelError for what is no state.
        """
        if self.environment.kind == "stepped":
            return self._predict_stepped(observation, deterministic), None
        return self._act(observation, deterministic), None

    def _predict_stepped(self, observation: Any, deterministic: bool) -> Any:
        kind = self.environment.worlds
        shape = getattr(kind.space, "shape", None)
        single = isinstance(observation, tuple | dict) if shape is None else (
            np.shape(observation) == shape
        )
        seen = [observation] if single else list(observation)
        try:
            states = np.array([kind.states.index(kind.observe(one)) for one in seen], np.int64)
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"observation: {observation!r}: {error}") from error
        chosen = self._act(states, deterministic).tolist()
        actions = [kind.act(kind.actions.element(action)) for action in chosen]
        return actions[0] if single else np.array(actions)

    def _act(self, observation: Any, deterministic: bool) -> Any:
        states = np.asarray(observation)
        n_states, n_actions = self.environment.n_states, self.environment.n_actions
        if states.dtype.kind not in "iu" or np.any((states < 0) | (states >= n_states)):
            raise ModelError(
                f"observation: {observation!r} must be integers from 0 to {n_states - 1}"
            )
        holding = self._run.architecture.holding
        values, _ = holding.values_of(states.reshape(-1).astype(np.int64))
        if deterministic:
            actions = values.argmax(axis=1)
        else:
            key, level = self._run.architecture.exploration
            best = values.max(axis=1, keepdims=True)
            if key == "epsilon":
                chances = (values == best).astype(np.float64)
                chances /= chances.sum(axis=1, keepdims=True)
                chances = (1 - level) * chances + level / n_actions
            else:
                chances = np.exp((values - best).astype(np.float64) / level)
            passed = chances.cumsum(axis=1)
            wanted = self._random.random(len(values)) * passed[:, -1]
            actions = (passed[:, :-1] <= wanted[:, None]).sum(axis=1)
        # Indexing by () makes a number of an array without dimensions.
        return actions.astype(np.int64).reshape(states.shape)[()]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write a checkpoint (docs/checkpoint.md), and return its path; COLLECTIVE.

        `.h5` is added to a path without an end; folders are made. It appears whole, or not at all.
        Raises FileError on all ranks where it cannot be written.
        """
        with self._transport.together():
            self._open()
            file = _with_suffix(Path(self._transport.broadcast(os.fspath(path))))
            first = self.rank == 0
            with self._transport.same_outcome():
                if first:
                    make_folder(file.parent)
            self._run.saver.write_to(file if first else None, self._transport)
        return file

    def certificate(self) -> Certificate | None:
        """How good the table is, exactly; None where the environment cannot be solved. COLLECTIVE.

        The first call computes exact values. `policy_gap`, `policy_loss`, `policy_return`,
        `best_return` and more; see `distq_mpi.certificate.Certificate`.
        """
        with self._transport.together():
            self._open()
            self._run.solve()
            return self._run.certify(tight=True)

    def table_sha256(self) -> str:
        """SHA-256 of the table's bits: the same on any number of ranks. Local, but COLLECTIVE with
        `architecture="sharded"`."""
        return self._run.architecture.holding.sha256()

    def from_rank_0(self, work: Callable[[], Any]) -> Any:
        """Call `work` on rank 0, and return its result on every rank; COLLECTIVE."""
        with self._transport.together():
            return self._transport.from_rank_0(work)

    def close(self) -> None:
        """Free what MPI and environments hold; COLLECTIVE.

        `predict`, `q_values` and `table_sha256` still work where every rank has the table, as it
        does not with `architecture="sharded"`. Not needed at the end of a script, nor
        on one rank.
        """
        if not self._closed:
            self._closed = True
            if self._run is not None:
                self._run.architecture.keep_table()
                self._run.architecture.close()
            if self._transport.size > 1:
                self._transport.close()

    def __enter__(self) -> QLearning:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:  # peers that failed otherwise would be waited for
            self.close()

    @property
    def config(self) -> Config:
        """The resolved configuration."""
        return self._run.config

    @property
    def environment(self) -> Environment:
        """What is learned on."""
        return self._run.environment

    @property
    def progress(self) -> Progress:
        """Counters after the last round: `round`, `steps`, `episodes`, `mean_return`, `td_rms`."""
        return self._run.architecture.progress

    @property
    def num_timesteps(self) -> int:
        """Steps of all lanes on all ranks."""
        return self.progress.steps

    @property
    def n_envs(self) -> int:
        """Lanes on all ranks."""
        return self.config.parallel.lanes

    @property
    def seed(self) -> int:
        """Seed of every random number."""
        return self.config.run.seed

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self._transport.rank

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._transport.size

    @property
    def q_values(self) -> np.ndarray:
        """A copy of the values (S, A), of the table's dtype; under Double Q the mean of both.

        Local; with `architecture="sharded"` COLLECTIVE, and the whole table must fit on every rank:
        `save` writes one that does not.
        """
        holding = self._run.architecture.holding
        if holding.blocks is None:
            return np.array(holding.rows.policy_values())
        values, _ = holding.values_of(np.arange(holding.n_states))
        return values.astype(holding.rows.record.dtype)

    def _rounds(
        self,
        ended: Verdict | None,
        callback: Any,
        called: bool,
        total: float | None,
        show: Callable[[int], None],
    ) -> Verdict:
        """Run rounds to a verdict. COLLECTIVE. called : whether any rank has a callback."""
        if called:
            callback.init_callback(self)
            callback.on_training_start(self._locals(total), globals())
        while ended is None:
            if called:
                callback.on_rollout_start()
            ended = self._run.step()
            show(self.num_timesteps)
            if not called or (ended is not None and ended.status == "diverged"):
                continue
            callback.update_locals(self._locals(total))
            # Not through the next round's agreement: that round would be learned, too.
            if self._any(callback.on_step() is False):
                ended = ended or Verdict("finished", "a callback asked to stop", 0)
            else:
                callback.on_rollout_end()
        if called:
            callback.on_training_end()
        return ended

    def _stop_after(self, total: float | None) -> StopConfig:
        if total is None:
            return self._run.prepared.config.stop
        if isinstance(total, bool) or not isinstance(total, int | float | np.number):
            raise _agreed(ConfigError(f"total_timesteps: {total!r} must be an integer >= 1"))
        if total != total // 1 or total < 1:
            raise _agreed(ConfigError(f"total_timesteps: {total} must be an integer >= 1"))
        limit = self.num_timesteps + int(total)
        return replace(self._own_stop, steps=min(limit, self._own_stop.steps or limit))

    def _any(self, mine: bool) -> bool:
        """Whether any rank says yes. COLLECTIVE."""
        votes = np.array([mine], np.int64)
        self._transport.max_int(votes)
        return bool(votes[0])

    def _locals(self, total: float | None) -> dict[str, Any]:
        progress = self.progress
        return {
            "self": self,
            "total_timesteps": total,
            "round": progress.round,
            "episodes": progress.episodes,
            "mean_return": progress.mean_return,
            "td_rms": progress.td_rms,
        }

    @contextlib.contextmanager
    def _progress_bar(self, stop: StopConfig, wanted: bool) -> Iterator[Callable[[int], None]]:
        if not wanted or self.rank != 0:
            yield lambda n_steps: None
            return
        with progress_bar(self.num_timesteps, stop.steps) as show:
            yield show

    def _open(self) -> None:
        if self._closed:
            raise _agreed(ConfigError("this model was closed"))


def _divided(env: Any) -> tuple[Any, str]:
    """An object to make the environment of, or None and what to call it in the configuration."""
    if env is None:
        return None, ""
    if isinstance(env, str | os.PathLike):
        return None, os.fspath(env)
    by_name = environments.is_environment_class(env) and "." not in env.__qualname__
    if by_name and getattr(sys.modules.get(env.__module__), env.__qualname__, None) is env:
        # By its name where that finds it, so that files and the command line find it, too.
        return None, environments.object_id(env)
    return env, ""


def _configuration(keywords: Mapping[str, Any], source: Any, given: Any, named: str) -> Config:
    from distq_mpi.cli import from_keywords

    config = from_keywords({"env_id": named, **keywords} if named else keywords, source)
    if given is None:
        return config
    return replace(config, env=replace(config.env, id=environments.object_id(given)))


def _agreed(error: DistqError) -> DistqError:
    """An error that every rank raises here."""
    error.agreed = True
    return error


def _with_suffix(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    return file if file.suffix else file.with_name(file.name + SUFFIX)
