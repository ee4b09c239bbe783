"""How a network runs: its batch norms folded, compiled, in parts of a batch; and its memory."""
