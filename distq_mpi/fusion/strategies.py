"""The fusion strategies: which parts of the loops in `kernels` each one takes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.config import LEAST_VISITS, STATISTICS
from distq_mpi.errors import ConfigError
from distq_mpi.kernels import Kernel, fusing, merging, summing
from distq_mpi.kernels.chunks import chunk_parts
from distq_mpi.kernels.step_sizes import STEP_SIZES, by_rounds, step_parameter
from distq_mpi.kernels.storing import exact, stochastic


@dataclass(frozen=True)
class Fusion:
    """One strategy.

    Parameters
    ----------
    name : as in `parallel.fusion`.
    share, combine, advance : parts of the loops in `summing`.
    advance_signed : `advance` where clocks count changes of sign; None = the same.
    weighted : whether what clocks counted is summed times visits, for an average's clock.
    gains : whether 1 - kept is summed, for a limit on the sum of differences.
    powers : whether `share` and `combine` look at powers of 1 - alpha.
    maximum : whether values are reduced by MAX instead of by fixed-point sums.
    shared : whether agents write to one table, so that there is nothing to fuse.
    merge : maker of `merging.fuse_each`'s part, for strategies that need every agent's value.
    source : where the rule comes from.
    """

    name: str
    share: Callable[..., Any] = fusing.share_pooled
    combine: Callable[..., Any] = fusing.combine_pooled
    advance: Callable[..., Any] = fusing.advance_pooled
    advance_signed: Callable[..., Any] | None = None
    weighted: bool = False
    gains: bool = False
    powers: bool = False
    maximum: bool = False
    shared: bool = False
    merge: Callable[..., Any] | None = None
    source: str = ""

    @property
    def adds(self) -> bool:
        """Whether what agents contribute is added up."""
        return not (self.maximum or self.shared or self.merge)

    @property
    def statistic(self) -> bool:
        """Whether it is a statistic of values, biased where few visits stand behind each."""
        return self.name in STATISTICS

    def wanted_visits(self, config: Any) -> int:
        """Visits of a pair in a round, by all agents, that a statistic wants behind its values; 0
        where any number will do. Local."""
        least = _least_visits(config.parallel)
        return (2 * config.parallel.trim + 1) * least if self.statistic and least > 1 else 0

    def sums(self, step_size: str) -> tuple[str, ...]:
        """Names of the int64 arrays that are reduced over agents, in the order they are sent."""
        if self.merge is not None:
            return ()
        if self.maximum:
            return ("visits", "winner")
        signed = STEP_SIZES[step_size].signed
        found = ["values", "visits"]
        found += ["ticks"] * (self.weighted or signed) + ["votes"] * signed
        return (*found, *["gains"] * self.gains)

    def sent_bytes(self, config: Any, n_pairs: int, size: int) -> int:
        """Bytes of contributions that a rank sends in a round on `size` ranks, at most. Local."""
        n_agents, signed = config.parallel.agents, STEP_SIZES[config.learn.step_size].signed
        if n_agents == 1 or self.shared:
            return 0
        if self.merge is None:
            return 8 * n_pairs * (len(self.sums(config.learn.step_size)) + self.maximum)
        return -(-n_agents // size) * n_pairs * (12 + 4 * signed)

    def check(self, deterministic: bool, pessimistic: bool, config: Any) -> None:
        """Raise ConfigError where the strategy cannot work under a resolved `Config`. Local.

        pessimistic : whether no initial value is above its optimal one.
        """
        parallel = config.parallel
        safe = parallel.agents == 1 or parallel.force or (deterministic and pessimistic)
        if self.maximum and not safe:
            why = (
                "may start above the optimal values (known not to: a table of transitions without "
                "negative rewards, and learn.initial zeros)"
                if deterministic
                else "keeps every overestimate of an environment that is not known to be "
                "deterministic"
            )
            raise ConfigError(
                f"parallel.fusion: max {why} and never comes down; use pooled or count, or set "
                "parallel.force true"
            )
        fewest = 2 * parallel.trim + 1
        if self.statistic and 1 < parallel.agents < fewest:
            raise ConfigError(
                f"parallel.trim: {self.name} with trim {parallel.trim} needs {fewest} visitors of "
                f"a pair, more than parallel.agents {parallel.agents}; take trim "
                f"{(parallel.agents - 1) // 2} or {fewest} agents"
            )
        gain = parallel.agents * step_parameter(config.learn)
        unstable = self.name == "delta" and config.learn.step_size == "constant"
        if unstable and gain >= fusing.GAIN_LIMIT and not parallel.force:
            raise ConfigError(
                f"parallel.fusion: delta diverges where all agents visit a pair: parallel.agents x "
                f"learn.alpha = {gain:g} must be < {fusing.GAIN_LIMIT:g}; take delta_capped, or "
                "set parallel.force true"
            )

    def warnings(
        self, config: Any, n_pairs: int, longest: int, deterministic: bool
    ) -> list[str]:
        """What a user should know of the strategy under a resolved `Config`. Local.

        longest : steps per lane of a round at most. deterministic : whether the environment is
        known to be.
        """
        parallel, learn = config.parallel, config.learn
        if parallel.agents == 1:
            return []
        if self.statistic:
            return self._few_visits(config, n_pairs, longest, deterministic)
        if self.name == "delta":
            return [
                f"parallel.fusion: delta is stable while the sum over agents of 1 - (1 - alpha)^n "
                f"stays below {fusing.GAIN_LIMIT:g} for every pair; {parallel.agents} agents can "
                f"reach {min(parallel.agents, parallel.agents * _first_alpha(learn)):.3g} with one "
                "visit each; delta_capped has no such limit"
            ]
        if self.name == "importance":
            alpha = _first_alpha(learn)
            bound = min((1 - learn.discount) / (8 * learn.discount), 1 / parallel.agents) / alpha
            return [
                f"parallel.fusion: importance is proven for at most {1 + int(bound)} visits of a "
                f"pair by an agent between fusions (alpha {alpha:.3g}, {parallel.agents} agents, "
                f"discount {learn.discount:g}; Woo, Joshi & Chi 2023)"
            ] if learn.discount > 0 else []
        return []

    def _few_visits(
        self, config: Any, n_pairs: int, longest: int, deterministic: bool
    ) -> list[str]:
        """Warnings of a statistic over values that few visits stand behind."""
        parallel, least = config.parallel, _least_visits(config.parallel)
        generative, fewest = config.learn.sampling == "generative", 2 * parallel.trim + 1
        a_step = parallel.agents if generative else parallel.lanes / n_pairs
        seen = longest * a_step
        behind = max(1.0, min(float(least), seen / fewest))
        if parallel.steps_per_round != "auto":
            behind = max(behind, seen / parallel.agents)
        if deterministic or behind >= LEAST_VISITS:
            return []
        enough = math.ceil(min(fewest, parallel.agents) * LEAST_VISITS / a_step)
        remedy = f"parallel.steps_per_round auto, or {enough} and more, brings"
        if least < LEAST_VISITS:
            remedy = f"parallel.least_visits {LEAST_VISITS} and {remedy}"
        return [
            f"parallel.fusion: the {self.name} is taken over values of about {behind:.2g} "
            f"visit{'s' * (behind >= 1.05)} each: where rewards or next states are random it has "
            "another fixed point than Q*, and may prefer other actions, until some "
            f"{LEAST_VISITS} visits average what is random (docs/fusion.md); {remedy} it nearer"
        ]


def _least_visits(parallel: Any) -> int:
    """Visits that a value of a statistic needs behind it."""
    return 1 if parallel.least_visits == "auto" else int(parallel.least_visits)


def _first_alpha(learn: Any) -> float:
    """The step size of a pair's first visit."""
    step_size = STEP_SIZES[learn.step_size]
    first = step_size.upcoming(np.uint32(0))
    return float(step_size.size(first, learn.discount, step_parameter(learn)))


FUSIONS = {
    fusion.name: fusion
    for fusion in (
        Fusion(
            "pooled", powers=True,
            source="all targets pooled, as FedQ case 2 (Zheng et al. 2024)",
        ),
        Fusion(
            "count",
            fusing.share_count, fusing.combine_count, fusing.advance_count, weighted=True,
            source="visit-weighted average (FedAvg, McMahan et al. 2017)",
        ),
        Fusion(
            "mean",
            fusing.share_mean, fusing.combine_mean, fusing.advance_mean,
            advance_signed=fusing.advance_mean_signed,
            source="equal average (Woo, Joshi & Chi 2023, EqAvg)",
        ),
        Fusion(
            "importance", merge=merging.importance,
            source="average weighted by 1 / (1 - alpha)^n (Woo, Joshi & Chi 2023, ImAvg)",
        ),
        Fusion(
            "delta", fusing.share_mean, fusing.combine_delta, gains=True,
            source="sum of differences (parameter server; Nair et al. 2015, Gorila)",
        ),
        Fusion(
            "delta_capped",
            fusing.share_mean, fusing.combine_delta_capped, fusing.advance_delta_capped, gains=True,
            source="sum of differences over max(1, sum of 1 - (1 - alpha)^n)",
        ),
        Fusion("median", merge=merging.median, source="over visitors (Yin et al. 2018)"),
        Fusion(
            "trimmed_mean", merge=merging.trimmed_mean, source="over visitors (Yin et al. 2018)"
        ),
        Fusion(
            "max", maximum=True,
            source="optimistic maximum (Lauer & Riedmiller 2000); deterministic environments",
        ),
    )
}  # fmt: skip


FROZEN = Fusion(
    "pooled", fusing.share_count, fusing.combine_frozen, fusing.advance_round,
    source="sampled value iteration: a step of the round towards the mean of all its targets",
)  # fmt: skip
"""What `pooled` is where `learn.target` is frozen: agents' values are means of targets."""


HOGWILD = Fusion("hogwild", shared=True, source="one table without locks (Recht et al. 2011)")
"""What takes the place of fusion where all agents write to one table."""


def fusion_of(config: Any) -> Fusion:
    """The strategy of a resolved `Config`. Local."""
    if config.parallel.fusion == HOGWILD.name:
        return HOGWILD
    return FROZEN if config.learn.target == "frozen" else FUSIONS[config.parallel.fusion]


def adopts(config: Any) -> bool:
    """Whether there is nothing to fuse: one agent's table, or all agents', is the next one. Local.
    """
    one_table = config.parallel.agents == 1 or fusion_of(config).shared
    return bool(one_table and config.learn.target == "live")


def fusion_kernels(config: Any, record: Any) -> dict[str, Kernel]:
    """Return the requests for the fusion loops of a resolved `Config`. Local.

    One agent needs `adopt` alone; more need `contribute` and `fuse`.
    """
    fusion, step_size = fusion_of(config), STEP_SIZES[config.learn.step_size]
    if config.learn.target == "frozen":
        step_size = by_rounds(step_size, config.learn.frozen_rounds)
    advance = fusion.advance_signed if step_size.signed else None
    kept = fusing.kept_after(step_size)
    parts = {
        "WIDTH": record.width,
        "STRIDE": record.stride,
        "CLOCK_STRIDE": record.clock_stride,
        "CLOCK_OFFSET": record.clock_offset,
        "VISITS_AHEAD": record.visits_ahead,
        "SIGNED": step_size.signed,
        "size": step_size.size,
        "upcoming": step_size.upcoming,
        "store": exact if record.dtype == np.float64 else stochastic,
    }
    q, clock = np.zeros(1, record.dtype), np.zeros(1, np.uint32)
    ints, counts, floats = np.zeros(1, np.int64), np.zeros(1, np.uint64), np.zeros(1)
    tables = (q, clock, q, clock)
    if adopts(config):
        taken = (q, clock, clock, q, clock, ints, counts, floats)
        return {"adopt": Kernel(fusing.adopt, parts, taken)}
    if fusion.maximum:
        return {
            "contribute": Kernel(
                fusing.contribute_max, parts, (*tables, floats, ints, ints, floats, floats)
            ),
            "fuse": Kernel(fusing.fuse_max, parts, (q, clock, floats, ints, counts)),
        }
    if fusion.merge is not None:
        parts["merge"] = fusion.merge(
            kept, config.parallel.trim, _least_visits(config.parallel)
        )
        each, uints = np.zeros((1, 1)), np.zeros((1, 1), np.uint32)
        return {
            "contribute": Kernel(
                merging.contribute_each, parts,
                (q, clock, clock, floats, clock, clock, floats, floats),
            ),
            "fuse": Kernel(
                merging.fuse_each, parts,
                (*tables, each, uints, uints, ints, floats, counts, floats),
            ),
        }  # fmt: skip
    parts = chunk_parts(
        fusion, record, step_size, parts["store"], advance or fusion.advance,
        config.parallel.agents,
    )  # fmt: skip
    parts["TILE_ROWS"] = fusing.tile_rows(record.width)
    sums, tiles = (ints,) * 5, np.zeros(1, np.uint8)
    contributed = (*tables, *sums, floats, floats, counts, tiles, floats, ints)
    fused = (*tables, *sums, counts, counts, floats, ints, tiles, floats, ints)
    read = (*tables, q, clock, counts, counts, counts, floats, floats, ints, tiles, tiles, counts,
            floats, ints)
    return {  # of which a run needs the first two or the third
        "contribute": Kernel(summing.contribute, parts, contributed),
        "fuse": Kernel(summing.fuse, parts, fused),
        "fuse_replicas": Kernel(summing.fuse_replicas, parts, read),
    }
