"""Sound before any encoder: windows, files, log-mel features, made soundscapes."""
