"""HTTP of the trained encoders: which there are, and which one shall read prompts."""
