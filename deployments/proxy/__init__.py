"""HAProxy before the ingresses: what Ray Serve starts in its place becomes it.

`command` is what Serve runs: it makes Serve's configuration ours (`config`), sees to a second
HAProxy on the same port (`twin`), and then becomes the first. Nothing here imports Ray, or anything
else of the application: it starts anew whenever an ingress comes or goes.
"""
