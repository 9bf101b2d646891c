"""Recipes: everything that decides a training run but the data. The TOML files lie beside it."""
