"""Text on its way to a model: rows from disk or built in, split into what is learned and judged, cut into batches."""
