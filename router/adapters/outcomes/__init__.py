"""How well prompts like one were answered. Knows neither cards nor what is decided by it.

How well a candidate will answer any prompt is told by `quality.py`.
"""
