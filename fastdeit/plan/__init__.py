"""The plan: what happens to each sample of each epoch, drawn before it happens. NumPy alone."""
