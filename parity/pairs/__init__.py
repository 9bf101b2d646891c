"""The same network in both frameworks, and what passes between them."""
