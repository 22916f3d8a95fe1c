"""Who answers a request, and what its client is told of that.

`fallback` goes along the chain of models until one answers; `together` sends the prompts of a list
to several and makes one answer of theirs (`merging`, pure); `start` has the headers; `pools` is how
a request comes to a replica. None knows HTTP.
"""
