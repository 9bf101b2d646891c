"""All that is to be measured on a GPU, in one command that loses no minute of it."""
