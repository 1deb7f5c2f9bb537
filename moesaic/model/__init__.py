"""Models built from the parts: the decoder, what routers read, and the mixture."""
