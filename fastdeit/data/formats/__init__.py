"""The formats of a data set: which one lies there, and where the bytes of each image are."""
