"""Model zoo: registry, model creation, conversion of other libraries' weights, label matching."""
