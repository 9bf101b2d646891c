"""A node's network as a value, its weights as a state_dict, and its input."""
