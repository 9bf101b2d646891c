"""Pictures of a run: its tree, what it confuses, how it was trained. No framework is needed."""
