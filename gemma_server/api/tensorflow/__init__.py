"""TensorFlow Serving's routes: the status of versions, metadata, and `:predict`."""
