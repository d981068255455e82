"""The data, traffic and models of `ragaccel demo`."""
