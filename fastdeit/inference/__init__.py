"""Uses of trained weights: load any checkpoint, score it, classify images with it."""
