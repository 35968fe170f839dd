"""Web page to try models on."""
