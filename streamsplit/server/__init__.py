"""The server: streams of many devices in, embeddings stored and given back."""
