"""A node's network from outside, its weights as a state_dict, and its input."""
