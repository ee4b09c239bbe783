"""Checkpoints: written in the background, verified when read, independent of ZeRO stage and world
size. On the way to the disk: writer.py (a thread), store.py (one checkpoint), files.py (one
file)."""
