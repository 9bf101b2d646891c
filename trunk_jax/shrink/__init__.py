"""Smaller networks: pruned, with int8 weights, and the low-power demonstration."""
