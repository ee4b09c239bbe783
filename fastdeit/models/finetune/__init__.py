"""Fine-tuning: weights of another model made to fit, and the choice of those that are trained."""
