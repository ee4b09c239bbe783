"""The rehearsal of ImageNet: its stand-in, the stages, and what each costs."""
