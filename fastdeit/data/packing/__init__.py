"""A data set written again: smaller images, in tar shards or class folders."""
