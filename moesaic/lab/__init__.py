"""The pretraining lab: studies that train architectures from nothing and compare them."""
