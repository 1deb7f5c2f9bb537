"""Models built from the parts: the decoder, the encoder, features for routers, classifiers and mixtures."""
