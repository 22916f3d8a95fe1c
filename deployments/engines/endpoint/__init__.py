"""A model elsewhere, behind the engine's protocol: what is asked of it, and what it answers.

`endpoint_engine` sends a request and passes its answer on; `asked` is the request as the endpoint
takes it, `answers` reads what comes back, `breaker` says when the endpoint is left alone, `limits`
how often it may be asked, `key` where its key is. Nothing here knows an adapter.
"""
