"""What the pages of the checks, the studies and `compare` have in common."""
