"""The commands on runs: train, estimate, compare, report, replay."""
