"""The loaders: batches of training and of evaluation, in torch."""
