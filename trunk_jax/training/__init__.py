"""Training a node, siblings, a whole tree; their state on disk."""
