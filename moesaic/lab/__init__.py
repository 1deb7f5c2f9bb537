"""The pretraining lab: studies, in which architectures are trained under the same conditions and compared."""
