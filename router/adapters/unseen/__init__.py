"""Prompts of tasks that nobody made an adapter for: where outcomes say that one helps all the same.

Knows what is known of prompts like one, and what is decided by it. How well a candidate will answer
any prompt is told by `quality.py`; whether cards fit, by `scope.py`.
"""
