"""From a name to a model and back: registry, creation, weights, the Hub."""
