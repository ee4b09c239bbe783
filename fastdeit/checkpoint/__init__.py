"""Checkpoints: written in the background, verified when read, free of ZeRO stage and world size."""
