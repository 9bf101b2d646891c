"""What a tree costs."""
