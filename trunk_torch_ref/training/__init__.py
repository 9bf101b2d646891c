"""Training a node and a whole tree; their state on disk."""
