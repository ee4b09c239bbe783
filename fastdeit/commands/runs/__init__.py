"""The commands on runs: train, replay."""
