"""A run: its flags, its folder and the files in it."""
