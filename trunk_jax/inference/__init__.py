"""From images to decisions: batches, one image, programs compiled ahead of time."""
