"""Files of a model: download, verify, read and publish weights, config.json and card."""
