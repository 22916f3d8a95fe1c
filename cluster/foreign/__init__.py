"""What settings and rules say of things that others have made.

`patterns` are regular expressions, `wrappers` what programs put around a user's words,
`server_args` those of vLLM's arguments that can do nothing here.
"""
