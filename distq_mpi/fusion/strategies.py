"""The fusion strategies: which parts of the loops in `kernels.fusing` each one takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from distq_mpi.errors import ConfigError
from distq_mpi.kernels import Kernel, fusing
from distq_mpi.kernels.step_sizes import STEP_SIZES
from distq_mpi.kernels.storing import exact, stochastic


@dataclass(frozen=True)
class Fusion:
    """One strategy.

    Parameters
    ----------
    name : as in `parallel.fusion`.
    share, combine, advance : parts of `fusing.contribute` and `fusing.fuse`.
    extra : whether a third number per pair is sent (sum of squared visits, or the winner's visits).
    maximum : whether values are reduced by MAX instead of by fixed-point sums.
    source : where the rule comes from.
    """

    name: str
    share: Callable[..., Any] = fusing.share_pooled
    combine: Callable[..., Any] = fusing.combine_pooled
    advance: Callable[..., Any] = fusing.advance_pooled
    extra: bool = False
    maximum: bool = False
    source: str = ""

    def check(self, deterministic: bool, pessimistic: bool, force: bool) -> None:
        """Raise ConfigError where the strategy has no fixed point at Q*. Local.

        pessimistic : whether no initial value is above its optimal one.
        """
        if not self.maximum or force or (deterministic and pessimistic):
            return
        why = (
            "starts above the optimal values (take learn.initial zeros where no reward is negative)"
            if deterministic
            else "keeps every overestimate of a stochastic environment"
        )
        raise ConfigError(
            f"parallel.fusion: max {why} and never comes down; use pooled or count, or set "
            "parallel.force true"
        )


FUSIONS = {
    fusion.name: fusion
    for fusion in (
        Fusion("pooled", source="all targets pooled, as FedQ case 2 (Zheng et al. 2024)"),
        Fusion(
            "count",
            fusing.share_count, fusing.combine_count, fusing.advance_count, extra=True,
            source="visit-weighted average (FedAvg, McMahan et al. 2017)",
        ),
        Fusion(
            "mean",
            fusing.share_mean, fusing.combine_mean, fusing.advance_mean,
            source="equal average (Woo, Joshi & Chi 2023, EqAvg)",
        ),
        Fusion(
            "max", extra=True, maximum=True,
            source="optimistic maximum (Lauer & Riedmiller 2000); deterministic environments",
        ),
    )
}  # fmt: skip


def fusion_kernels(config: Any, record: Any) -> dict[str, Kernel]:
    """Return the requests for the fusion loops of a resolved `Config`. Local.

    One agent needs `adopt` alone; more need `contribute` and `fuse`.
    """
    fusion = FUSIONS[config.parallel.fusion]
    parts = {
        "N_ACTIONS": record.n_actions,
        "STRIDE": record.stride,
        "CLOCK_STRIDE": record.clock_stride,
        "CLOCK_OFFSET": record.clock_offset,
        "step_size": STEP_SIZES[config.learn.step_size],
        "store": exact if record.dtype == np.float64 else stochastic,
        "SQUARES": fusion.extra,
        "share": fusion.share,
        "combine": fusion.combine,
        "advance": fusion.advance,
    }
    q, clock = np.zeros(1, record.dtype), np.zeros(1, np.uint32)
    ints, counts, found = np.zeros(1, np.int64), np.zeros(1, np.uint64), np.zeros(5)
    rates = np.zeros(4)
    if config.parallel.agents == 1:
        return {"adopt": Kernel(fusing.adopt, parts, (q, clock, clock, q, clock, ints, found))}
    contribute = fusing.contribute_max if fusion.maximum else fusing.contribute
    fuse = fusing.fuse_max if fusion.maximum else fusing.fuse
    values = found if fusion.maximum else ints
    return {
        "contribute": Kernel(
            contribute, parts, (q, clock, q, clock, values, ints, ints, rates, found)
        ),
        "fuse": Kernel(
            fuse, parts, (q, clock, q, clock, values, ints, ints, counts, counts, rates)
        ),
    }
