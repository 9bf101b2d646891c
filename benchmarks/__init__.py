"""Speed: ours and PyTorch's side by side, one process each, in turns, on one machine."""
