"""The formats of a data set: which one a folder has, and where the bytes of each image are."""
