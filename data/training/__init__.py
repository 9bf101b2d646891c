"""What both frameworks do alike when they train and evaluate a tree."""
