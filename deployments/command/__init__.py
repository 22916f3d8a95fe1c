"""What people type: the command line `roundhouse`, the client of the endpoint that it speaks with,
and what owns the processes of `roundhouse up` and ends them with it.

It is above everything else in `deployments`: it may use the application and all its parts, and none
of them imports it. A command starts fast or people stop using it, so that what is heavy (torch,
Ray, the adapter store, even the settings) is imported inside the functions that need it; a test
keeps it out of the commands that only ask the endpoint. Nothing here runs inside the cluster: what
its processes share is in `deployments.process`.
"""
