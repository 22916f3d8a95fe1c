"""The commands `roundhouse router ...`: train the encoder, and say which one reads prompts."""
