"""The monolithic baselines as data: recipes, architectures, public weights."""
