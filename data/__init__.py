"""What both frameworks share: datasets, splits, augmentation policy, recipes and the label tree.

NumPy only. Nothing here imports JAX or PyTorch, so that a difference between the
two ports can never hide in, nor come from, the data that they are given.
"""

import trunk_sisters

trunk_sisters.check()
