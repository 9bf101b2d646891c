"""The rounding model of float32: how far a right result may be from the true one.

An error is at most `CONSTANT * UNIT * scale * growth`, where `growth` is the sum over layers of the
square root of the accumulation length: rounding errors of a sum of k terms add up like a random
walk of k steps. docs/parity.md says how it is used, `parity/checks/tolerance.py` on what it rests.
"""

UNIT = 2.0**-24  # the unit roundoff

# The next power of two above the largest quotient of an error and the model without it that was
# met: 2.12 by `python -m parity.check`, 3.51 by `--baselines small` (seed 0, on a CPU).
CONSTANT = 4.0
