"""What runs: a folder for each kind of process, what they share, and what starts them.

`app.build` binds the whole Ray Serve application. `ingress` answers HTTP, `chooser` picks adapters,
`replica` serves one base model, `planner` says what should be where; they import nothing of each
other. Below them are `engines`, and `process`, which every process has; above them `app` and
`command`. Ray is imported in each `deployment.py`, in `process`, `command` and `app` alone.
"""
