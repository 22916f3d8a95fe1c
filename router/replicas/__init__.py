"""Which replica answers a request, and whose request is next.

Here live the time that each replica is expected to take, the queue that is fair between tenants and
adapters, and the memory of which replica had which start of a prompt. All of it is plain Python in
memory, for every request comes through here: nothing waits, sends, or reads a clock. Which adapter
is meant has been chosen before (`router/adapters`); where adapters are loaded is the planner's.
"""
