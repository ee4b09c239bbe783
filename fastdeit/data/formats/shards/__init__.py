"""WebDataset shards: which files they are, the samples in them, and the bytes of each image."""
