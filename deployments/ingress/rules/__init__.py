"""The rules of the choice in an ingress: `book` follows them in the store, `choice` asks them, and
then the prompt router, `http` shows and takes them.

What rules say of a prompt is decided elsewhere and pure (`router.rules`).
"""
