"""The calls of `cluster/calls.py`, as the ingress has to do with them.

`reading` reads each shape of body, `form` those that are no JSON; `abilities` knows which models
can answer; `answers` counts what each shape of answer brings, and words its errors. None of them
knows where a request goes.
"""
