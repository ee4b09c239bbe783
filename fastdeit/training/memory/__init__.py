"""The device's memory: what a run needs of it, and activations computed again to need less."""
