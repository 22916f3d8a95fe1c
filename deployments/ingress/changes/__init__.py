"""The changes of adapters: `http` takes them, and `vllm` as vLLM's clients send
them, `admin` makes them, `proof` has a replica load what
is to be registered, `rollout_driver` moves rollouts on.

What an adapter is after a change is decided elsewhere and pure (`cluster.rollouts`); what is stored
is the store's (`adapter_store.registration`).
"""
