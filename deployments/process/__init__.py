"""What every process of the cluster has, and what crosses between them.

Has: `process` (one connection to the store, one copy of the registry, one set of numbers; parts
that live as the process does), `membership` (its lease and its report), `metrics` and `telemetry`,
`logs`. Crosses: `call` (a request, and the reply to it), `wire` (how the reply travels),
`request_router` (Ray Serve's part of the dispatch). `ray_options`, `ray_health` and `serve_status`
are what Ray is told, and tells.

It imports nothing of what runs in one kind of process only: no engine, no ingress, no command.
"""
