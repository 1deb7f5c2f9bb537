"""The pretraining lab: architectures trained under the same conditions, and compared."""
