"""Rules that are read before the classifier: which speak of a prompt, and what they leave.

What a rule may say is `cluster.rules`; who is asked when rules leave more than one is
`router/adapters`. Pure: the rules, the prompt and who may see what are passed in.
"""
