"""What parity.check checks, a subject a file, and how close is close enough."""
