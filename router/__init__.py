"""The two choices of a request: which adapter fits the prompt, and which replica answers it.

`adapters` makes the first, `replicas` the second; neither knows of the other. Both are handed what
they decide by, and answer with values: no loop, no clock to wait for, no store, no other process.
Imports `cluster`, `adapter_store` and itself; never `deployments`, Ray or vLLM.
"""
