"""Parameter groups, optimizers, the learning rate of each step, and the EMA of the weights."""
