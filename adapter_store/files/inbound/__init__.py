"""What outsiders name or send, fetched and looked into by processes of its own.

`confined` runs a piece of work in a child that is bounded in memory, time and bytes, and may
connect only to what `guard` lets it; `forkserver` is where the children come from, `lanes` says
whose turn it is. What they do: `fetching` brings an adapter's files (`web`, `archives`), `looking`
reads them.
"""
