"""A catalogue that teaches its encoder: `lessons` are what is learnt from, `contrast` tunes,
`crossing` tells what examples are like under encoders that have not seen them, `schooling` does it
all and decides whether it was worth it, `trained` is what is kept of it.

Runs in a process of its own; what chooses reads `trained` alone.
"""
