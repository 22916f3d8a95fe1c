"""What stands between the network and the endpoint's operations, whoever asks and whatever for.

`legible` is before Ray Serve, `doors` before the application: names, pages elsewhere, preflights.
`request_ids` are known here in one form; `probes` are answered to anybody.
"""
