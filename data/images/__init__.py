"""Images and labels: datasets, their files, splits, and the augmentation policy."""
