"""What generates: the seam `engine.Engine`, and the two engines that stand behind it.

`vllm_engine` is vLLM's engine, changed from inside: `vllm_plugin` checks vLLM's shape and puts our
classes in the place of its own, `vllm_worker` is what we ask of its workers, `vllm_lora` holds
adapters in host memory and slots, `lora_cpu` and `lora_kernel` apply them on CPU, and `prepared` is
the file that a worker maps. `echo` is the one fake, for tests and for benchmarks at scale. `asgi`
calls an application inside this process, as vLLM's OpenAI layer is; what it refuses is put into our
words by `refusals`. `request_schemas` tells what its requests look like.

vLLM is imported here and nowhere else, and the replica imports no engine but the one that its
model names. An engine knows one base model and what it was told to load: no Ray, no store (the
names of an adapter's files are all it has of `adapter_store`), and nothing of the ingress, the
replica, the planner or the chooser.
"""
