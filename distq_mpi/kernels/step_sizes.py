"""Step sizes: alpha as a function of a pair's clock AFTER its increment (1, 2, ...).

Each takes (clock uint32, discount, alpha) and returns float64 in (0, 1].
"""

import numpy as np

f8 = np.float64


def rescaled_linear(clock, discount, alpha):
    """1 / (1 + (1 - discount) clock) (Wainwright 2019, equation 6)."""
    return 1.0 / (1.0 + (1.0 - discount) * f8(clock))


def constant(clock, discount, alpha):
    """alpha, whatever the clock."""
    return alpha


STEP_SIZES = {"rescaled_linear": rescaled_linear, "constant": constant}
