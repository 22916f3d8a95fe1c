"""What is made of scores by examples that were left out: probabilities, and how far one may go by
them."""
