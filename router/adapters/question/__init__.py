"""What of a turn the user asked: without what programs put around it (`wrappers`, `templates`), and
without the long matter that is pasted beside it (`pasted`). Texts in, texts out; all of it in time
that grows with the text and with it alone, for strangers write these prompts."""
