"""Layers with PyTorch's semantics, in the form that is fast where it runs."""
