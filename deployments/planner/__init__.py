"""The planner: reads what is asked for, plans what should be where, and writes the journal.

`planner` is the loop of the one that leads; the plan itself is `cluster.placement`. `foresight`
learns what is usual at a time of the day, `news` gathers what happened, `journal` puts it in words.

Nothing waits for it, and nothing imports it.
"""
