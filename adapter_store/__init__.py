"""What the store keeps, and adapters on their way into it.

One connection (`server`) leads to everything kept: the registry, members, blob references, the
plan, the log of decisions, telemetry. `keys` names every Redis key, `lua` has one script for each
change, and `catalogue` is a process's own copy of the registry. `registration`, `collector` and
`backup` bring the registry and the files of `files` together. `embedded` is the server that is
started where none is named.

What is decided about adapters is elsewhere: in `cluster`, pure. Imports `cluster` and itself; never
`router`, `deployments`, Ray or vLLM.
"""
