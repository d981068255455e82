"""`ragaccel demo`: both frameworks on real text, plain beside accelerated."""
