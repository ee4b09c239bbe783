"""WebDataset shards: their files, the samples in them, and the bytes of each image."""
