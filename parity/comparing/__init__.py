"""The parts of `python -m parity.compare`: two models of anybody's, and where they first differ."""
