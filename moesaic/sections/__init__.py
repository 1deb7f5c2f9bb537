"""The sections of a recipe that every room may read: where text comes from, how something is trained, who decides."""
