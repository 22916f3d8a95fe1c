"""What an engine refuses, told as this endpoint tells it.

`in_core` and `in_frontend` change vLLM where it takes a client's mistake for its own; `told` puts
every error of an answer into OpenAI's shape, streams included; `problems` finds in pydantic's list
of problems the one to mend; `bounds` refuses what would cost an engine all of its memory.
"""
