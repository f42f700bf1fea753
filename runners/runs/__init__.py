"""One run on disk: its folder, checkpoints and weights, where and with what it was made, and how it stops."""
