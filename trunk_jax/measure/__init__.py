"""What a tree costs: arithmetic, memory, time, energy."""
