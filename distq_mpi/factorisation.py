"""Direct solution of (I - discount P) x = b by a sparse factorisation (SuperLU, through scipy).

I - discount P is an M-matrix, diagonally dominant by rows: elimination needs no pivoting, so the
order of elimination may follow the structure of P + P^T (minimum degree) alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from distq_mpi.compact import Path
from distq_mpi.kernels.sweeps import PLACE_BITS

MOST_WORK = 3e10
"""Operations of a banded elimination, rows x bandwidth^2, beyond which a model is not factorised:
2 to 10 s on one core, and 1 to 2 GB. Random graphs, whose factors would be dense, are far above;
iterations converge fast on them."""


class Factors:
    """The factors of I - discount P over masked rows. Local.

    Constructing it takes memory; `factorise` refuses what would take too much.
    """

    def __init__(self, factors: Any, mask: np.ndarray) -> None:
        self._factors, self._inside = factors, mask.view(np.bool_)

    def solve(self, b: np.ndarray) -> np.ndarray:
        """Return x, float64 (n,), 0 outside the mask. b : float64 (n,), not changed."""
        x: np.ndarray = self._factors.solve(np.where(self._inside, b, 0.0))
        return x


def factorise(path: Path, mask: np.ndarray, discount: float) -> Factors | None:
    """Return the factors of I - discount P; None where they would be too large or P is improper.

    path : the transitions of a policy, all of them between rows of this rank. mask : uint8 (n,), a
    set of rows; transitions that leave it count as ends.
    """
    import scipy.sparse  # an import of 0.1 s, needed for slow mixers alone
    from scipy.sparse.csgraph import reverse_cuthill_mckee
    from scipy.sparse.linalg import splu

    n, inside = mask.size, mask.view(np.bool_)
    sizes = np.where(inside, path.ends.astype(np.int64) - path.begins[:n], 0)
    row = np.repeat(np.arange(n), sizes)
    at = np.arange(row.size) + np.repeat(path.begins[:n] - (np.cumsum(sizes) - sizes), sizes)
    at = at.astype(np.int64)
    ahead = (path.ahead[at] & np.uint32(PLACE_BITS)).astype(np.int64)
    kept = inside[ahead]
    row, ahead, at = row[kept], ahead[kept], at[kept]
    moves = scipy.sparse.csr_matrix((path.chances[at], (row, ahead)), shape=(n, n))
    order = reverse_cuthill_mckee(moves)
    position = np.empty(n, np.int64)
    position[order] = np.arange(n)
    band = 1 + int(np.abs(position[row] - position[ahead]).max(initial=0))
    if float(n) * band * band > MOST_WORK:
        return None
    matrix = (scipy.sparse.identity(n, format="csc") - discount * moves).tocsc()
    try:
        factors = splu(
            matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )  # fmt: skip
    except (RuntimeError, MemoryError):  # exactly singular, or no memory
        return None
    return Factors(factors, mask)
