"""PIL's resize with antialias, bit for bit: the weights, the two passes, the pixels that are
computed."""
