"""What the tokens and heads of a model do: attention, similarity, disagreement."""
