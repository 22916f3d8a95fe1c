"""The OpenAPI document of the endpoint, at `GET /openapi.json`.

`endpoints` is the one table of what is offered: whoever adds a route adds a line there, with the
models that parse its body; a test holds it against the routes. `calls` adds those of
`cluster/calls.py`, and `document` makes the document of it all.
`vllm.json` has the schemas of vLLM's own requests, written by `make docs`: an ingress has no vLLM
to ask, and the release names the version of it.
"""
