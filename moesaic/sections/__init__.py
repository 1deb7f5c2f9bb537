"""The sections of a recipe that every room may use: sources of text, training settings, routers."""
