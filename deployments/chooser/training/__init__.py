"""Trains an encoder on the catalogue: `child` does it, in a process that disturbs nobody; `running`
starts that and tells how far it is; `trainer` does so in the background, where the settings say.
"""
