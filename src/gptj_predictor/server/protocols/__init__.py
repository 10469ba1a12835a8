"""Wire formats: from a request's body to a ``GenerationRequest``, from texts to a body."""
