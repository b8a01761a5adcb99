"""Learning encoders from unlabelled sound: views, losses, the windows to learn from, and training before the stream begins."""
