"""From images to decisions."""
