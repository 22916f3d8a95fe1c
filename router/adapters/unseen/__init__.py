"""What is decided about prompts of tasks that nobody made an adapter for."""
