"""Trained trees in formats that other programs run: ONNX, StableHLO, a folder for a hub."""
