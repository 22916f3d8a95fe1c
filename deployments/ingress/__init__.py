"""The HTTP process: one request, from the key to the stream, and the changes of adapters.

A request goes one way: past the `edge`, `http` authorises it, `completion` reads it once, `gateway`
has it routed (`directory` knows names, `deployment` reaches the prompt router), `admission` finds
its replica with what `fleet` knows; what comes back is counted by `traffic` and streamed by `http`.
Beside that way: `changes` of adapters, `resolver` fetches those that are not registered, `overview`
is the cluster as a viewer may see it, `dashboard` the page. `operations` wires it all.

What is decided is elsewhere and pure (`router`, `cluster.rollouts`). It knows replicas by their
reports and by Ray Serve's handles, never by import.
"""
