"""Who answers a request, and what its client is told of that.

`fallback` goes along the chain of models until one answers; `start` has the headers, `pools` says
what is asked of replicas. None knows HTTP, nor how a request comes to a replica.
"""
