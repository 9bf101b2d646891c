"""What both frameworks share: datasets, splits, augmentation policy, recipes and the label tree.

NumPy only. Nothing here imports JAX or PyTorch, so that a difference between the
two ports can never hide in, nor come from, the data that they are given.
"""

import runpy
from pathlib import Path

# by its place: an import would run a file of that name in the user's own folder
runpy.run_path(str(Path(__file__).parents[1] / "trunk_sisters.py"))["check"]()
