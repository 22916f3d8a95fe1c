"""The prompt router's process: `deployment` batches prompts, `learner` keeps it up to date,
`encoders` follows which encoder it reads with, `training/` makes others in processes of their own.

How the choice is made is in `router.adapters`; here is when it learns, and from whom it is asked.
"""
