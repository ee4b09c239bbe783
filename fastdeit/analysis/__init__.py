"""Attention, similarity and disagreement of the tokens and heads of a model."""
