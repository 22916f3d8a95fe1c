"""What runs: the Ray Serve application, the engines behind it, and the command line."""
