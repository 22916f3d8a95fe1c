"""What is learnt from how well prompts were answered: `lessons` says what counts and how much,
`spectrum` is the regression, `exploring` tries candidates of whom little is known."""
