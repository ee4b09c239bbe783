"""The commands on a checkpoint: evaluate, predict, export."""
