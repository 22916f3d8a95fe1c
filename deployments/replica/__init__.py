"""One replica of a base model: an engine, the adapters it holds, and what should be there.

`model_server` serves a call (`serve_call`) and reports; `follower` keeps what is loaded in step
with the registry, the plan and the queue, with `sharing` (adapters that want a number of replicas)
and `prepare_ahead`; `adapter_cache` has the leases and the loads, `room` what leaves for what
comes, `worth` what a version is worth, `residency` where the engine says that everything is.

The engine is seen through its protocol (`deployments.engines.engine`). Only `deployment` knows Ray;
nothing here knows the ingress.
"""
