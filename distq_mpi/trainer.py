"""The order of phases of a run: prepare, rounds until a stop rule holds, finish."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from distq_mpi.architectures import Agreement, architecture_of
from distq_mpi.certificate import Certificate, Solver
from distq_mpi.config import StopConfig
from distq_mpi.environments.guard import refuse_noted
from distq_mpi.errors import DistqError, ModelError, QuorumLost, RanksLost
from distq_mpi.kernels.fusing import GAIN_LIMIT
from distq_mpi.kernels.rules import RULES
from distq_mpi.preparation import Prepared, from_command, from_directory, prepare, watch
from distq_mpi.recovery import recover
from distq_mpi.saving import Saver
from distq_mpi.signals import Signals
from distq_mpi.stopping import EXACT_TARGETS, Standstill, Verdict, is_check_round, verdict
from distq_mpi.summary import finish
from distq_mpi.watchdog import Watchdog

if TYPE_CHECKING:
    from distq_mpi.monitor import Monitor
    from distq_mpi.transport import Transport


WASTED_S = 5.0
"""Seconds of learning and exchange from which on a run may be called too small for its ranks: at
first rounds are short."""


class Times:
    """Seconds this rank has spent in each phase."""

    def __init__(self) -> None:
        self.startup_s = self.learn_s = self.exchange_s = self.certify_s = self.io_s = 0.0
        self.started = time.perf_counter()

    @property
    def wall_s(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self.started


class Run:
    """One run as this rank sees it: the state of learning and what watches over it.

    Attributes: `monitor`, set by whoever makes the run, on rank 0 alone and where it is to be told.
    """

    def __init__(self, prepared: Prepared, transport: Transport, signals: Signals) -> None:
        self.transport, self.signals, self.n_started = transport, signals, transport.size
        self.monitor: Monitor | None = None
        self.phase, self.phase_since, self.longest_s = "start", 0.0, 0.0
        self.recoveries = 0
        self.times = Times()
        self.times.started = prepared.started
        self._take(prepared)
        self.solver: Solver | None = None
        self.certificate: Certificate | None = None
        self._told: set[str] = set()
        self._standstill: Standstill | None = None
        self._report_at = 0.0
        self._asked = (False, False, False)
        self._stopping = False
        self.begun = False
        """Whether the state the run begins with is there."""
        self._n_agreed = 0
        self._agreement: Agreement | None = None

    def _take(self, prepared: Prepared) -> None:
        """Make the state before the first round. COLLECTIVE."""
        self.prepared, self.config = prepared, prepared.config
        self.environment = prepared.environment
        self.architecture = self._architecture()
        self.saver = Saver(
            self.config, self.environment, prepared.directory, self.architecture,
            prepared.agents_from_ranks,
        )  # fmt: skip

    def _architecture(self) -> Any:
        with self._agreed():  # a user's environments may break when they are made
            kind = architecture_of(self.config, self.environment, self.n_started)
            return kind(self.config, self.environment, self.prepared.kernels, self.transport)

    def start(self) -> Verdict | None:
        """Restore a checkpoint where there is one, solve the environment; COLLECTIVE.

        Returns a verdict where the restored run had already reached it.
        """
        self.restore()
        self.begun = True
        self.solve()
        self.times.startup_s = self.times.wall_s - self.times.certify_s
        return self._reached() if self.prepared.checkpoint is not None else None

    def take_up(self) -> Verdict | None:
        """Go on after ranks were lost; COLLECTIVE. What follows the last commit is done again.

        Returns the verdict that the undisturbed run would have come to there.
        """
        self.solve()
        if self._n_agreed == 0:
            return self._reached() if self.prepared.checkpoint is not None else None
        return None if self._agreement is None else self._conclude(self._agreement)

    def fill_up(self) -> Verdict | None:
        """Go on after ranks were lost, with new ones in their place; COLLECTIVE.

        What there is is written down, and taken up by those left and the new ones alike.
        """
        ended, transport = self.take_up(), self.transport
        n = self.n_started - transport.size
        if ended is not None or n <= 0 or not self.prepared.kept:
            return ended
        self.enter("respawn")
        self.saver.write(transport)
        transport.respawn(n, ["-m", "distq_mpi", "rejoin"])
        directory = self.prepared.directory
        find = None if directory is None else functools.partial(from_directory, directory)
        prepared = prepare(find, transport)
        startup_s, steps = self.times.startup_s, self.saver.restored_steps
        self.architecture.abandon()
        self._take(prepared)
        self.solver, self._agreement, self._n_agreed = None, None, 0
        ended = self.start()
        self.times.startup_s, self.saver.restored_steps = startup_s, steps
        if self.monitor is not None:
            self.monitor.event(
                "ranks_respawned",
                f"{n} rank{'s' * (n > 1)} started in the place of lost ones, {transport.size} now",
                ranks=[member.number for member in transport.members[-n:]],
            )
        return ended

    def settle_agreement(self) -> None:
        """Forget the last agreement where not all have come to it; COLLECTIVE.

        Where one rank has, all have done what followed the one before. An architecture that goes
        back further knows what was agreed on there.
        """
        if self.architecture.goes_back and self.architecture.agreement is not None:
            self._agreement = self.architecture.agreement
            self._n_agreed = max(1, self._n_agreed)
            return
        told = np.array([-self._n_agreed, self._n_agreed, self._agreement is None], np.int64)
        self.transport.max_int(told)
        if -told[0] != told[1] or told[2]:
            self._n_agreed, self._agreement = -int(told[0]), None

    def rebuild(self) -> None:
        """Take the state before the first round. COLLECTIVE."""
        self._agreement = None
        self.architecture.abandon()
        self.architecture = self.saver.architecture = self._architecture()

    def restore(self) -> None:
        """Take the state of the checkpoint the run begins with, if any. COLLECTIVE."""
        if self.prepared.checkpoint is not None:
            self.saver.restore(self.prepared.checkpoint, self.transport)

    def solve(self) -> None:
        """Compute exact values once, where that is possible; certificates need it. COLLECTIVE."""
        if self.solver is not None or not self.prepared.exact:
            return
        begin = time.perf_counter()
        solver = Solver(
            self.environment, self.config.learn.discount, self.prepared.kernels, self.transport,
            self.signals.asked_to_stop,
        )  # fmt: skip
        solver.solve()
        self.solver = solver
        self.times.certify_s += time.perf_counter() - begin

    def go_on(self, stop: StopConfig) -> Verdict | None:
        """Take other stop rules, and count time and speed from now; COLLECTIVE.

        Returns a verdict where the committed state meets one of them already.
        """
        self.config = replace(self.config, stop=stop)
        self.architecture.config = self.saver.config = self.config
        self.saver.restored_steps = self.architecture.progress.steps
        self.times, self._report_at, self.certificate = Times(), 0.0, None
        if self.solver is not None and self.solver.solution.stopped:
            self.solver = None
        if self.prepared.kept or any(getattr(stop, name) is not None for name in EXACT_TARGETS):
            self.solve()
        self.times.startup_s = self.times.wall_s - self.times.certify_s
        return self._reached() if self.architecture.progress.round else None

    def _reached(self) -> Verdict | None:
        """The stop rule that the state taken up meets already. COLLECTIVE."""
        certificate = self._certify_if_due()
        return verdict(self.config.stop, self.architecture.progress, None, certificate)

    def step(self) -> Verdict | None:
        """One round, from LEARN to TELL. COLLECTIVE. Returns the verdict that ends the run."""
        agreement = self._learn_and_agree()
        begin = time.perf_counter()
        if not agreement.non_finite:
            with self.signals.uninterrupted():
                self.architecture.commit()
        else:
            self.architecture.rollback()
        self.times.exchange_s += time.perf_counter() - begin
        self._agreement, self._n_agreed = agreement, self._n_agreed + 1
        return self._conclude(agreement)

    def _conclude(self, agreement: Agreement) -> Verdict | None:
        """What follows a commit: certificate, verdict, checkpoint, TELL. COLLECTIVE."""
        progress = self.architecture.progress
        self.enter("certificate")
        certificate = self._certify_if_due()
        ended = verdict(self.config.stop, progress, agreement, certificate)
        every = self.config.checkpoint.every_rounds
        due = bool(every) and progress.round % every == 0
        if agreement.unstable:
            self._tell_once(
                "unstable",
                f"{self.config.parallel.fusion} moved {agreement.unstable} pairs beyond their "
                f"targets in round {progress.round - 1}: the sum over agents of 1 - (1 - alpha)^n "
                f"must stay below {GAIN_LIMIT:g}; take parallel.fusion delta_capped or a smaller "
                "learn.alpha",
            )
        if ended is None and (due or agreement.want_checkpoint):
            self.checkpoint("asked" if agreement.want_checkpoint else "due")
        self._asked = (False, False, False)
        self._tell(certificate, ended)
        return ended

    def checkpoint(self, why: str) -> None:
        """Write a checkpoint into the run directory, if there is one. COLLECTIVE."""
        if not self.prepared.kept:
            return
        self.enter("checkpoint")
        begin = time.perf_counter()
        path = self.saver.write(self.transport)
        self.times.io_s += time.perf_counter() - begin
        if self.monitor is not None:
            number = self.architecture.progress.round
            self.monitor.event("checkpoint", path=str(path), why=why, round=number)

    def certify(self, tight: bool) -> Certificate | None:
        """The certificate of the committed table, None where none is possible. COLLECTIVE."""
        if self.solver is None:
            return None
        begin = time.perf_counter()
        certificate = self.solver.certify(self.architecture.holding, tight=tight)
        self.times.certify_s += time.perf_counter() - begin
        return certificate

    def _learn_and_agree(self) -> Agreement:
        wishes = self._wishes()  # taken once: asking forgets them, and a round may be run again
        while True:
            self.enter("learn")
            begin, within = time.perf_counter(), self.architecture.exchange_time_s
            with self._agreed():
                self.architecture.learn()
                self.enter("exchange")  # others may still be at work
            self._refuse_mistakes()
            middle, within = time.perf_counter(), self.architecture.exchange_time_s - within
            agreement = self.architecture.exchange(wishes)
            self.longest_s = max(self.longest_s, middle - begin)
            self.times.learn_s += middle - begin - within
            self.times.exchange_s += time.perf_counter() - middle + within
            if agreement is not None:
                return agreement
            self.architecture.rollback()

    def _agreed(self) -> AbstractContextManager[None]:
        """Where environments are stepped, what one of them raises is raised on all ranks."""
        stepped = self.environment.kind == "stepped"
        return self.transport.same_outcome() if stepped else nullcontext()

    def _refuse_mistakes(self) -> None:
        """Raise what the guard of a law noted in this round. COLLECTIVE."""
        progress = self.architecture.progress
        steps = range(progress.lane_steps, progress.lane_steps + progress.period + 1)
        refuse_noted(
            self.environment, self.transport, self.config.run.seed, self.config.parallel.lanes,
            steps,
        )  # fmt: skip

    def _wishes(self) -> tuple[bool, bool, bool]:
        checkpoint, stop = self.signals.take()
        if self.monitor is not None:
            asked_checkpoint, asked_stop = self.monitor.requests()
            checkpoint, stop = checkpoint or asked_checkpoint, stop or asked_stop
        limit = self.config.stop.wall_time_s
        late = self.transport.rank == 0 and limit is not None and self.times.wall_s >= limit
        # What was asked for in a round that was broken off is asked for again.
        stop, checkpoint = stop or self._asked[0], checkpoint or self._asked[1]
        self._asked = stop, checkpoint, late
        return self._asked

    def asked_to_stop(self) -> bool:
        """Whether this rank was asked to stop since the last round; stays so. Local."""
        asked = self.signals.take()[1]
        if self.monitor is not None:
            asked = self.monitor.requests()[1] or asked
        self._stopping = self._stopping or asked
        return self._stopping

    def all_agree_to_stop(self) -> bool:
        """Whether any rank was asked to stop since the last round. COLLECTIVE."""
        votes = np.array([self.asked_to_stop()], np.int64)
        self.transport.max_int(votes)
        self._stopping = bool(votes[0])
        return self._stopping

    def keep_what_was_learned(self, error: BaseException) -> None:
        """Write the last commit where an environment that is stepped ends the run: mended, it is
        still the same one (a law would be another). COLLECTIVE for an error that all ranks raise,
        else nothing."""
        stepped = self.environment.kind == "stepped"
        agreed = stepped and isinstance(error, ModelError) and error.agreed
        committed = self.begun and self.architecture.progress.round > 0
        if not (agreed and committed and self.architecture.rolls_back):
            return
        with suppress(DistqError):  # the error is told all the same
            self.checkpoint("failed")
            if self.monitor is not None:
                path = self.monitor.directory.path
                self.monitor.event(
                    "saved",
                    f"round {self.architecture.progress.round} is saved; when the environment is "
                    f"mended: python -m distq_mpi resume {path}",
                )

    def enter(self, phase: str) -> None:
        """Say what this rank does from now on. Local."""
        self.phase, self.phase_since = phase, time.perf_counter()
        if self.monitor is not None:
            self.monitor.enter(phase)

    def _certify_if_due(self) -> Certificate | None:
        n_pairs = self.environment.n_states * self.environment.n_actions
        if not is_check_round(self.architecture.progress, n_pairs):
            return None
        certificate = self.certify(tight=False)
        self.certificate = certificate or self.certificate
        if (
            certificate is not None
            and certificate.unknown is not None
            and not self.signals.asked_to_stop()
        ):
            wanted = [name for name in EXACT_TARGETS if getattr(self.config.stop, name) is not None]
            targets = f"; stop.{wanted[0]} ends no run while that is so" if wanted else ""
            self._tell_once("unknown", certificate.unknown + targets)
        return certificate

    def _tell(self, certificate: Certificate | None, ended: Verdict | None) -> None:
        """Every certificate goes into the metrics; the terminal gets a line now and then."""
        monitor = self.monitor
        if monitor is None:
            return
        progress, times = self.architecture.progress, self.times
        show = times.wall_s >= self._report_at or ended is not None
        if certificate is None and not show:
            return
        if show:
            self._report_at = times.wall_s + self.config.run.report_every_s
        busy = times.learn_s + times.exchange_s
        known = self.certificate
        row = {
            "wall_time_s": times.wall_s,
            "steps": progress.steps,
            "steps_per_s": (progress.steps - self.saver.restored_steps) / busy if busy else None,
            "round": progress.round,
            "episodes": progress.episodes,
            "mean_return": progress.mean_return,
            "td_rms": progress.td_rms,
            "policy_gap": known.policy_gap if known else None,
            "policy_loss": known.policy_loss if known else None,
            "q_error": known.q_error if known else None,
            **dict([self.architecture.exploration]),
            "steps_per_round": progress.period,
            "learn_time_s": times.learn_s,
            "exchange_time_s": times.exchange_s,
            **self.architecture.report(),
        }
        monitor.report(row, show)
        if certificate is not None and (still := self._noticed(certificate)):
            self._tell_once("standstill", still)
        for kind, message in self.architecture.notices():
            self._tell_once(kind, message)
        size, agents = self.transport.size, self.config.parallel.agents
        if self.architecture.exchanges == "fusion" and agents < size:
            idle = size - agents
            self._tell_once(
                "idle_ranks",
                f"{idle} of {size} ranks ha{'s' if idle == 1 else 've'} no agent (parallel.agents "
                f"{agents}) and only own{'s' * (idle == 1)} rows",
            )
        elif size > 1 and times.exchange_s > 2 * times.learn_s and (
            busy > WASTED_S or ended is not None
        ):
            self._tell_once(
                "too_small",
                f"{100 * times.exchange_s / busy:.0f} % of learning and "
                f"{self.architecture.exchanges} went into {self.architecture.exchanges}, and "
                f"waiting for others in it: {self.environment.n_states} states are too few for "
                f"{size} ranks to profit",
            )

    def _noticed(self, certificate: Certificate) -> str:
        """That learning stands still, in words, or "". Local."""
        if RULES[self.config.learn.rule].keeps_gap and self.environment.n_actions > 1:
            return ""
        if self._standstill is None:
            n_actions = self.environment.n_actions
            known = None if self.solver is None else self.solver.value_range
            self._standstill = Standstill(
                self.environment.n_states * n_actions, n_actions, known
            )
        return self._standstill.notice(self.architecture.progress.steps, certificate)

    def _tell_once(self, kind: str, message: str) -> None:
        if self.monitor is not None and kind not in self._told:
            self._told.add(kind)
            self.monitor.event(kind, message)


def run(command: Any, transport: Transport) -> int:
    """Run `train` or `resume` to its end and return the exit code. COLLECTIVE."""
    with Signals() as signals:
        prepared = prepare(functools.partial(from_command, command), transport)
        this: Run | None = None
        monitor = watch(prepared, transport)
        try:
            if prepared.config.parallel.on_loss != "abort" and transport.size > 1:
                transport.survive()
            this = Run(prepared, transport, signals)
            this.monitor, dog = monitor, Watchdog(this)
            code = live(this)
            dog.end()
            if not transport.survives:
                this.architecture.close()
        except BaseException as error:
            if this is not None:
                this.keep_what_was_learned(error)
            monitor = this.monitor if this is not None else monitor
            if monitor is not None and not isinstance(error, QuorumLost):
                code = getattr(error, "exit_code", 1)
                monitor.fail(f"{type(error).__name__}: {error}", code)
            raise
        if transport.survives:
            transport.leave(code)
        transport.close()
        return code


def live(run: Run) -> int:
    """Run rounds to their end, whoever is lost on the way; return the exit code. COLLECTIVE."""
    transport, work = run.transport, run.start
    while True:
        try:
            with transport.losses():
                ended = work()
                while ended is None:
                    ended = run.step()
                run.enter("end")
                code = finish(run, ended)
                transport.agree()
                return code
        except RanksLost as loss:
            recover(run, loss)
            refills = run.config.parallel.on_loss == "respawn"
            work = run.fill_up if refills else run.take_up


def rejoin(transport: Transport) -> int:
    """Go on with a run as one of the ranks that `Run.fill_up` started. COLLECTIVE."""
    with Signals() as signals:
        with transport.losses():
            prepared = prepare(None, transport)
            this = Run(prepared, transport, signals)
        dog = Watchdog(this)
        code = live(this)
        dog.end()
    transport.leave(code)
    return code
