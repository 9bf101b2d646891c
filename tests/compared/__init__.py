"""Models in users' style, in both frameworks, and faults in them, for the tests of `compare`."""
