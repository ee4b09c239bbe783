"""The execution of networks: with folded batch norms, compiled, in chunks of a batch; and their
memory."""
