"""Which adapter or base model a prompt goes to, and why.

Here lives all that is learnt of cards and outcomes, and the choice that is made by it: the features
of texts, the classifier and its scope, constraints, costs, the policy, and how good it all is
(`eval-router`). `prompt_router.py` is the front; behind it `index.py` learns the cards and
`choice.py` decides. Cards, outcomes and reports are passed in: who asks, when it is time to learn
and where decisions are kept is the deployment's. Which replica answers is not asked here
(`router/replicas`): of replicas only what they cost counts.
"""
