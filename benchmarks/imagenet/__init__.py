"""The rehearsal of ImageNet: its stand-in, the stages, and the costs of each."""
