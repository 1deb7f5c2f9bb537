"""The hub of models: locating, downloading and pushing models and their cards."""
