"""The commands on a data set: index, pack, fetch, preview."""
