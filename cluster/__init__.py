"""Facts and plans: what all processes agree on, and what is decided without asking anybody.

Values that cross processes (`adapters`, `members`, `decisions`, `plans`; what clients send is in
`requests`), `names`, settings, the error tree, and pure functions on them: `placement` (which
replicas should hold what), `rollouts` (an adapter after one step), `demand`. `foreign` knows what
others have made. `tasks` is how every process keeps what runs in its background.

Nothing here opens a connection, reads a clock for a decision, or imports Ray, Redis, torch or vLLM;
it imports nothing of ours but itself.
"""
