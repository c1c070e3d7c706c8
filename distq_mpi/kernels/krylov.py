"""Loops of BiCGSTAB (van der Vorst 1992) over vectors of own rows, float64.

Sums are made block by block, so that they are the same whoever has which block.
"""

from __future__ import annotations

import numpy as np

from distq_mpi.kernels import Kernel

u8, i8 = np.uint64, np.int64
LANES, MOST = 4, 1e305
"""Sums of a block that are added up side by side; those beyond this count as infinite."""


def shown(total):
    """A sum as it is told to others: NaN has no order, and all blocks' must not overflow."""
    return total if abs(total) < MOST else np.inf


def dots(a, b, c, cuts, sums):
    """Write a.b and a.c of each block. cuts : int64 (n + 1,), borders of blocks as rows.
    sums : float64 (2 n,)."""
    for block in range(cuts.size - 1):
        first, last = cuts[block], cuts[block + 1]
        ab0, ab1, ab2, ab3, ac0, ac1, ac2, ac3 = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
        whole = first + (last - first) // LANES * LANES
        for s in range(first, whole, LANES):
            i, j, k, m = u8(s), u8(s + 1), u8(s + 2), u8(s + 3)
            ab0, ab1, ab2, ab3 = (
                ab0 + a[i] * b[i], ab1 + a[j] * b[j], ab2 + a[k] * b[k], ab3 + a[m] * b[m]
            )  # fmt: skip
            ac0, ac1, ac2, ac3 = (
                ac0 + a[i] * c[i], ac1 + a[j] * c[j], ac2 + a[k] * c[k], ac3 + a[m] * c[m]
            )  # fmt: skip
        for s in range(whole, last):
            ab0, ac0 = ab0 + a[u8(s)] * b[u8(s)], ac0 + a[u8(s)] * c[u8(s)]
        sums[2 * block] = shown((ab0 + ab1) + (ab2 + ab3))
        sums[2 * block + 1] = shown((ac0 + ac1) + (ac2 + ac3))


def search(p, r, w, rates):
    """p = r + beta (p - omega w); rates : beta, omega."""
    beta, omega = rates[0], rates[1]
    for i in range(p.size):
        p[i] = r[i] + beta * (p[i] - omega * w[i])


def less(x, swept, out, against, cuts, sums):
    """out = x - swept, of own rows; sums : of out.against and out.out, as `dots` writes them."""
    for i in range(out.size):
        out[i] = x[i] - swept[i]
    dots(out, against, out, cuts, sums)


def half(r, w, rates):
    """r = r - alpha w; rates : alpha."""
    alpha = rates[0]
    for i in range(r.size):
        r[i] -= alpha * w[i]


def finish(d, r, p, t, shadow, rates, cuts, sums):
    """d = d + alpha p + omega r, then r = r - omega t; rates : alpha, omega; sums : of r.shadow and
    r.r, as `dots` writes them."""
    alpha, omega = rates[0], rates[1]
    for i in range(r.size):
        d[i] += alpha * p[i] + omega * r[i]
        r[i] -= omega * t[i]
    dots(r, shadow, r, cuts, sums)


def krylov_kernels() -> dict[str, Kernel]:
    """Return the requests of these loops. Local."""
    v, cuts = np.zeros(1), np.zeros(1, i8)
    return {
        "krylov_search": Kernel(search, {}, (v, v, v, v)),
        "krylov_less": Kernel(less, {}, (v, v, v, v, cuts, v)),
        "krylov_half": Kernel(half, {}, (v, v, v)),
        "krylov_finish": Kernel(finish, {}, (v, v, v, v, v, v, cuts, v)),
    }
