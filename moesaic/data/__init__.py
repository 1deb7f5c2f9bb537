"""Text for models: reads rows, splits them into train, validation and test, and makes batches."""
