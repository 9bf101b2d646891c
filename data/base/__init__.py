"""What every command needs, and what knows nothing of images or trees: errors, files, tables."""
