"""From a name to a model: registry, creation, weights of other libraries, matching of classes."""
