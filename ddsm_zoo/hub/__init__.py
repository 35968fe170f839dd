"""Files of a model: fetch, verify, read and publish weights, config.json and card."""
