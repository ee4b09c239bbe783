"""The DALI graphs that read, decode and augment."""
